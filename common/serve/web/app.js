// Foliar's page: takes photos, has them answered in the browser, and asks the server where that helps and is allowed.

import * as light from "./light.js";
import * as server from "./server.js";
import { $, drawHeat, el, showAnswer, showError, showWaiting, title, toggleHeat, words } from "./view.js";

const MOST = 5; // photos of one plant
const PATIENCE = 4000; // ms that a photo waits for the model to load before the server is asked instead
const STUCK = "Photos are not sent, and they cannot be answered here.";
let facts = null; // of /page.json
let state = { pixels: false, light: false, why: null }; // what this browser can do
let current = null; // the photo under way, so that a newer one can call it off
const isPrivate = () => $("private").checked;

// ---- answering -----------------------------------------------------------------------------------------------------

async function handle(files) {
  current?.abort();
  const control = new AbortController();
  current = control;
  preview(files[0]);
  showWaiting();
  setBusy(true);
  try {
    await answer(files, control.signal);
    // on a phone the answer is below the photo
    if (current === control && matchMedia("(max-width: 760px)").matches) $("result").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (current !== control) return; // a newer photo has called it off
    if (error.name === "AbortError") await handle(files); // the switch has: without the server, then
    else showError(error.message, error.advice);
  } finally {
    if (current === control) setBusy(false);
  }
}

async function answer(files, signal) {
  if (files.length > MOST) throw wrong(`You chose ${files.length} photos.`, `Choose up to ${MOST}, all of one plant: they get one answer.`);
  if (files.some((file) => file.type && !file.type.startsWith("image/"))) {
    throw wrong("This is not a picture.", "Choose a photo: JPEG, PNG and WebP work.");
  }
  await Promise.race([ready, ...(isPrivate() ? [] : [new Promise((done) => setTimeout(done, PATIENCE))])]);
  signal.throwIfAborted();
  const own = await local(files[0], signal);
  const sends = !isPrivate() && (files.length > 1 || !own.decision || own.asks);
  if (!own.decision && !sends) {
    throw own.trouble ? wrong(own.trouble, "Save it as JPEG or PNG, or let it be sent to the server.")
      : wrong(`${STUCK} ${state.why}`, "To have it answered, switch “Never send photos” off.");
  }
  if (own.decision) {
    const asking = files.length > 1 ? "The server puts your photos together …" : "I am not sure, so I am asking the server …";
    tell(own, { by: "browser", note: sends ? asking : single(files), ask: sends || isPrivate() ? null : () => askToo(files, own) });
  }
  if (sends) await remote(files, own, signal);
}

const wrong = (message, advice) => Object.assign(new Error(message), { advice });
const single = (files) => (files.length > 1 ? "Only the server puts several photos together. This is the answer to the first one." : null);

// What the browser makes of a photo: an answer, or where it has no model only { image }, or { trouble }.
async function local(file, signal) {
  if (!state.pixels) return {};
  try {
    return await light.answer(file);
  } catch (error) {
    if (error.kind === "too_small") throw wrong(error.message, "Send the photo itself, not a preview of it.");
    return error.kind === "unreadable" ? { trouble: error.message } : {};
  } finally {
    signal.throwIfAborted();
  }
}

async function remote(files, own, signal) {
  try {
    const photos = [];
    for (const [i, file] of files.entries()) photos.push(await copyOf(file, i === 0 ? own : await local(file, signal)));
    const found = await server.ask(photos, signal);
    tell({ ...found, image: own.image ?? found.image }, { by: "server" });
  } catch (error) {
    if (!own.decision || error.name === "AbortError") throw error;
    tell(own, { by: "browser", note: `${error.message} This is your browser’s own answer.`, ask: () => askToo(files, own) });
  }
}

// The small copy of the photo that was read last; the photo itself where this browser could not read it.
async function copyOf(file, found) {
  if (found.image) return { blob: await light.small(), shortSide: Math.min(found.image.width, found.image.height) };
  const most = facts.server.max_upload_mb;
  if (file.size > most * 1e6) throw wrong(`The photo has more than ${most} MB.`, "Choose a smaller one.");
  return { blob: file, shortSide: null };
}

async function askToo(files, own) {
  const control = new AbortController();
  current = control;
  setBusy(true);
  try {
    await remote(files, own, control.signal);
  } catch {
    if (current === control) tell(own, { by: "browser" }); // the switch has called it off
  } finally {
    if (current === control) setBusy(false);
  }
}

function tell(found, source) {
  drawHeat(found.heatmap);
  showAnswer(found, source);
}

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("result").setAttribute("aria-busy", String(busy));
}

function preview(file) {
  const image = $("preview");
  URL.revokeObjectURL(image.src);
  drawHeat(null);
  const show = (good) => {
    $("frame").hidden = !good;
    $("invite").hidden = good;
    $("stage").classList.toggle("full", good);
  };
  image.onload = () => {
    $("frame").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    show(true);
  };
  image.onerror = () => show(false);
  image.src = URL.createObjectURL(file);
}

// ---- where photos are answered -------------------------------------------------------------------------------------

function describe() {
  const { size } = facts.server;
  const copy = state.pixels ? `a small copy (${size} × ${size} pixels, without place or date)` : "your photo";
  const where = "goes to the server this page came from. It is not kept.";
  let text;
  if (isPrivate()) text = state.light ? "Your photo stays on this device." : `${STUCK} ${state.why}`;
  else if (!state.light) text = `${title(copy)} ${where} ${state.why}`;
  else if (!navigator.onLine) text = "You are offline: photos are answered here, in your browser.";
  else text = `Answered here, in your browser. Only where that is unsure, ${copy} ${where}`;
  $("privacy").textContent = text;
}

async function begin() {
  try {
    const response = await fetch("page.json");
    if (!response.ok) throw new Error(response.status);
    facts = await response.json();
    state = await light.start(facts, isPrivate());
    state = { ...state, ...await state.loading };
  } catch {
    state = { ...state, why: "The server cannot be reached." };
    facts ??= { server: { size: 0, max_upload_mb: 20 } };
  }
  describe();
  performance.mark("ready");
  document.documentElement.dataset.ready = state.light ? "browser" : "server";
  // only on https and localhost do browsers keep pages for use without a connection
  if (isSecureContext && facts.version) navigator.serviceWorker?.register(`sw.js?v=${facts.version}`).catch(() => {});
}

// ---- wiring --------------------------------------------------------------------------------------------------------

function take(transfer) {
  const files = [...(transfer?.files ?? [])];
  if (files.length) handle(files);
  return files.length > 0;
}

for (const [button, input] of [["pick", "file"], ["shoot", "camera"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    take($(input));
    $(input).value = ""; // so that the same photo can be chosen again
  });
}
$("heat-switch").addEventListener("click", toggleHeat);
document.addEventListener("paste", (event) => { if (take(event.clipboardData)) event.preventDefault(); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (!take(event.dataTransfer)) showError("What you dropped is no file.", "Save the picture first, then drop or choose the saved file.");
});

try {
  $("private").checked = localStorage.getItem("private") === "1";
} catch { /* without storage the switch is set anew on each visit */ }
$("private").addEventListener("change", () => {
  try {
    localStorage.setItem("private", isPrivate() ? "1" : "0");
  } catch { /* as above */ }
  if (isPrivate()) {
    current?.abort();
    if (state.light) light.fetchAll().catch(() => {});
  }
  describe();
});
for (const kind of ["online", "offline"]) addEventListener(kind, () => { if (facts) describe(); });

const ready = begin();
ready.then(() => fetch("model")).then((response) => response.json()).then((model) => {
  const flat = model.num_classes === model.num_species;
  $("known-summary").textContent = `What I know: ${model.num_species} plants${flat ? "" : `, ${model.num_classes} conditions`}`;
  $("known-list").replaceChildren(...model.classes.map(({ species, diseases }) => el("li", { text: title(species) },
    flat ? null : el("small", { text: diseases.map(words).join(", ") }))));
  $("known").hidden = false;
}).catch(() => {}); // the page works without this list
