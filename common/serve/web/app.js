// Foliar's page: takes photos of a plant, has them answered on the device, and asks the server where that helps and is allowed.

import { called, loadKnown, speciesOf } from "./known.js";
import * as light from "./light.js";
import { $, button, json, loadTexts, online, t, title } from "./page.js";
import * as photos from "./photos.js";
import { LIMIT, ask as askServer, problem } from "./server.js";
import { askWhole, showAnswer, showError, showTips, showWaiting } from "./view.js";

const PATIENCE = 4000; // ms that a photo waits for the model to load before the server is asked instead
const SLOWEST = 20; // bytes/ms
let facts = null; // of page.json
let state = { pixels: false, light: false, why: null }; // what this browser can do
let sample = null; // the example, where it is the photo
let current = null; // the question under way: a newer one, a cancel or the time limit calls it off
const alone = "alone" in document.documentElement.dataset; // on a web host that has no server of ours: nothing is ever sent
const isPrivate = () => alone || $("private").checked;

// ---- answering -----------------------------------------------------------------------------------------------------

// What is asked about: { file, url, crop } of all photos and of the one that is shown, and the species that the person knows.
function question() {
  const all = photos.all().map((photo) => ({ ...photo }));
  return { all, shown: all.find(({ url }) => url === photos.current().url), species: speciesOf($("plant").value), sent: "none" };
}

async function ask(force = false) {
  current?.abort("newer");
  const control = new AbortController();
  current = control;
  const asked = question();
  setBusy(true);
  showWaiting(t("looking"), { key: "cancel", click: () => control.abort("cancel") });
  try {
    await answer(asked, control, force);
  } catch (error) {
    if (current !== control) return; // a newer question has called it off
    if (control.signal.reason === "private") await ask(); // without the server, then
    else showError(control.signal.aborted ? calledOff(control.signal) : error, asked.sent);
  } finally {
    if (current === control) setBusy(false);
  }
}

const calledOff = ({ reason }) => (reason === "late" ? problem("late") : { message: t("called_off"), advice: null });

async function answer(asked, control, force) {
  const { signal } = control;
  if (asked.all.some(({ file }) => file.type && !file.type.startsWith("image/"))) throw problem("error_picture"); // a film may be large
  const patience = new Promise((done) => { setTimeout(done, PATIENCE); });
  await Promise.race([aborted(signal), started.then(() => Promise.race([ready, ...(isPrivate() ? [] : [patience])]))]);
  signal.throwIfAborted();
  const own = await local(asked.shown, asked.species, signal);
  const several = asked.all.length > 1;
  const sends = !isPrivate() && (force || several || !own.decision || (own.asks && !poor(own)));
  if (!own.decision && !sends) throw own.trouble ?? { message: stuck(), advice: alone ? null : t("stuck_do") };
  const first = several ? t(alone ? "first_only" : "alone_first") : null;
  if (!sends) return tell(own, asked, "browser", [first]);
  try {
    const found = await remote(asked, own, control);
    tell({ ...found, image: own.image ?? found.image }, asked, "server", [found.agreement?.message]);
  } catch (error) {
    if (!own.decision || current !== control || signal.reason === "private") throw error;
    const reason = signal.aborted ? calledOff(signal).message : error.message;
    tell(own, asked, "browser", [`${reason} ${first ?? t("alone")}`], true);
  }
}

const poor = ({ decision, rejection }) => decision === "rejected" && rejection.photo.length; // no other opinion makes it a better photo
const aborted = (signal) => new Promise((done) => { signal.addEventListener("abort", done); });
const stuck = () => [t("stuck"), alone ? "" : t("stuck_never"), why()].join(" ");
const why = () => (state.why ? t(`why_${state.why}`) : "");

// Why a file that this browser does not open has no answer; whole: whether the server opens it, which knows it by how it begins.
async function unopened(file) {
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 12).arrayBuffer().catch(() => [])));
  if (/^(\xff\xd8|\x89PNG|GIF8|BM|II|MM|\0\0\x01|RIFF....WEBP|....ftypavi)/s.test(head)) {
    return { message: `${t("no_preview")} ${t("not_sent")}`, advice: t("other_format"), whole: true };
  }
  return problem(/^....ftyp(he|mi)/s.test(head) ? "error_heic" : "error_picture");
}

// What the browser makes of a photo: an answer, or where it has no model only { image }, or { trouble } where it cannot open it.
async function local({ file, url, crop }, species, signal) {
  if (!state.pixels) return {};
  const asked = (blob) => Promise.race([light.answer(blob, crop, species), aborted(signal)]);
  try {
    return await asked(file).catch(async (error) => {
      if (error.kind !== "unreadable") throw error;
      return asked(await photos.redraw(url).catch(() => { throw error; }));
    });
  } catch (error) {
    if (error.kind === "small") throw problem("error_small", error.values);
    return error.kind === "unreadable" ? { trouble: await unopened(file) } : {};
  } finally {
    signal.throwIfAborted();
  }
}

// Send small copies of the photos, or a photo itself where this browser cannot read it and the person agrees.
async function remote(asked, own, control) {
  const { signal } = control;
  const copies = [];
  for (const photo of asked.all) {
    const found = asked.all.length === 1 ? own : await local(photo, asked.species, signal); // small() is of the photo read last
    if (found.image) copies.push({ blob: await light.small(), shortSide: Math.min(found.image.width, found.image.height) });
    else copies.push({ blob: photo.file, shortSide: null, trouble: found.trouble ?? await unopened(photo.file) });
  }
  signal.throwIfAborted();
  const large = copies.filter(({ trouble }) => trouble);
  const hopeless = large.find(({ trouble }) => !trouble.whole);
  if (hopeless) throw hopeless.trouble;
  if (large.some(({ blob }) => blob.size > facts.server.max_upload_mb * 1e6)) throw problem("error_large");
  setBusy(!large.length);
  if (large.length && !await askWhole(signal)) {
    signal.throwIfAborted();
    throw large[0].trouble;
  }
  setBusy(true);
  showWaiting(t(copies.length > 1 ? "together" : own.decision ? "second" : "looking"),
    { key: own.decision ? "enough" : "cancel", click: () => control.abort("cancel") });
  const size = copies.reduce((sum, { blob }) => sum + blob.size, 0);
  const timer = setTimeout(() => control.abort("late"), 1000 * LIMIT + size / SLOWEST);
  asked.sent = large.length ? "whole" : copies.length > 1 ? "copies" : "copy";
  try {
    return await askServer(copies, asked.species, signal);
  } catch (error) {
    if (error.unsent) asked.sent = "none";
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

function tell(found, asked, by, notes, again = false) {
  const { conditioned, rejection } = found;
  // the example is small for all to load: nothing that its reader can mend
  if (asked.shown.file === sample) rejection.photo = rejection.photo.filter(({ measure }) => measure !== "short_side");
  const other = found.species && conditioned && !conditioned.agrees
    && t("said_other", { said: called(asked.species), photo: called(conditioned.best_before.species) });
  const action = by === "browser" && !isPrivate() && !poor(found)
    && button(t(again ? "second_again" : "second_opinion"), () => ask(true), "minor", "second");
  if (action) action.hidden = !online();
  showAnswer(found, { photos: by === "browser" ? [asked.shown] : asked.all, by, sent: asked.sent, notes: [other, ...notes], action, privately: isPrivate() });
  const weights = found.photos?.map(({ weight }) => weight) ?? []; // the heatmap is of the photo that counts most
  const seen = weights.length > 1 ? asked.all[weights.indexOf(Math.max(...weights))] : asked.shown;
  if (seen.url === photos.current().url) photos.drawHeat(found.heatmap, seen.crop);
}

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("result").setAttribute("aria-busy", String(busy));
}

// ---- where photos are answered -------------------------------------------------------------------------------------

function describe() {
  const what = state.pixels ? t("small_copy", { size: facts.server?.size }) : t("whole_copy");
  let text;
  if (isPrivate()) text = state.light ? t("stays") : stuck();
  else if (!state.light) text = `${t("goes", { what: title(what) })} ${why()}`;
  else text = online() ? t("here_first", { what }) : t("offline");
  $("privacy").textContent = text;
  if ($("second")) $("second").hidden = !online();
}

let begun;
const started = new Promise((done) => { begun = done; }); // it is known what this browser can do

async function begin() {
  try {
    [facts] = await Promise.all([json("page.json"), loadTexts()]);
    state = await light.start(facts, isPrivate());
    photos.allowCut(state.pixels);
    begun();
    state = { ...state, ...await state.loading };
  } catch {
    facts ??= { server: { size: 0, max_upload_mb: 20 } };
  }
  begun();
  describe();
  performance.mark("ready");
  document.documentElement.dataset.ready = state.light ? "browser" : "server";
  // only on https and localhost do browsers keep pages for use without a connection
  if (isSecureContext && facts.version) navigator.serviceWorker?.register(`sw.js?v=${facts.version}`).catch(() => {});
}

// ---- wiring --------------------------------------------------------------------------------------------------------

function take(transfer, more = false) {
  const files = [...(transfer?.files ?? [])];
  if (files.length) photos.take(files, more);
  return files.length > 0;
}

photos.onChange(() => {
  current?.abort("newer");
  current = null;
  setBusy(false);
  showTips();
  document.body.classList.add("chosen");
  $("ask").hidden = $("more").hidden = false;
  $("example").hidden = true;
});
photos.wire();
for (const [id, input] of [["pick", "file"], ["shoot", "camera"], ["more", "file-more"]]) {
  $(id).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    take($(input), id === "more");
    $(input).value = ""; // so that the same photo can be chosen again
  });
}
$("ask").addEventListener("click", () => ask());
document.addEventListener("paste", (event) => { if (take(event.clipboardData)) event.preventDefault(); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (!take(event.dataTransfer)) showError(problem("error_no_file"));
});
$("plant").addEventListener("input", () => {
  $("plant-hint").textContent = $("plant").value && !speciesOf($("plant").value) ? t("plant_unknown") : "";
});

try {
  $("private").checked = localStorage.getItem("private") === "1";
} catch { /* without storage the switch is set anew on each visit */ }
$("private").addEventListener("change", () => {
  try {
    localStorage.setItem("private", isPrivate() ? "1" : "0");
  } catch { /* as above */ }
  if (isPrivate()) {
    current?.abort("private");
    if (state.light) light.fetchAll().catch(() => {});
  }
  describe();
});
for (const kind of ["online", "offline"]) addEventListener(kind, () => { if (facts) describe(); });

$("private").closest("label").hidden = alone;
const ready = begin();
ready.then(() => loadKnown(facts.shell)).then((example) => {
  $("example").hidden = !example || Boolean(photos.current());
  $("example").addEventListener("click", async () => {
    const blob = await fetch(example.url).then((response) => response.blob(), () => null);
    if (!blob) return showError(problem("error_none"));
    sample = new File([blob], "example.jpg", { type: "image/jpeg" });
    photos.take([sample], false);
    return $("ask").focus(); // the button is gone
  });
}).catch(() => {}); // the page works without
