// What the page shows for an answer, a rejection, an error and while it waits.

import { advice, called, className, otherNames, pictures } from "./known.js";
import { $, POOR, button, el, percent, t, title } from "./page.js";
import { picture } from "./photos.js";

const MANY = 4; // classes to show beside an answer
const SURE = [0.6, 0.9]; // probability from which it is likely, and sure: badge, sentence and advice go by it
const level = (share) => SURE.filter((least) => share >= least).length;

// Put it in the place of the answer. The focus stays where it was: on the control of the same name, else on the answer itself.
function show(state, by, ...nodes) {
  const result = $("result");
  const inside = result.contains(document.activeElement) && document.activeElement;
  result.replaceChildren(...nodes.filter(Boolean));
  Object.assign(result.dataset, { state, by });
  if (state && matchMedia("(max-width: 760px)").matches) result.scrollIntoView(); // there it is below the photo
  if (inside) ((inside.id && $(inside.id)) || result).focus({ preventScroll: true });
}

function say(...sentences) {
  $("spoken").textContent = sentences.filter(Boolean).join(" ");
}

function bars(items) {
  return el("ul", { class: "bars" }, ...items.map(({ name, share }) => {
    const fill = el("i");
    fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    return el("li", {}, el("span", { class: "label", text: name }), el("span", { class: "share", text: percent(share), "aria-hidden": "true" }),
      el("div", { class: "bar", role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": share.toFixed(3),
        "aria-valuetext": percent(share) }, fill));
  }));
}

const section = (heading, ...nodes) => [el("h3", { text: heading }), ...nodes];

// ---- what to do, and what to compare with --------------------------------------------------------------------------

function nextStep(text, row = null) {
  const link = row?.link && /^https?:/.test(row.link) && el("a", { href: row.link, target: "_blank", rel: "noopener noreferrer", text: t("read_more") });
  const more = ["severity", "treatment"].map((key) => [key, row?.[key]]).filter(([, told]) => told);
  return el("div", { class: "next" }, el("b", { text: t("next") }), (row?.text || text) && el("p", { text: row?.text || text }),
    ...more.map(([key, told]) => el("p", { text: t(key, { text: told }) })), link && el("p", {}, link),
    row?.source && el("p", { class: "soft", text: t("source", { text: row.source }) }));
}

// A name with its scientific and other ones, where whoever runs this wrote them down.
const names = (tag, kind, ...of) => [el(tag, { class: kind, text: title(called(...of)) }), otherNames(...of)];

// The person's photos beside pictures of what they are said to show. Under "never send" those wait for a yes: they tell what was seen.
function compare(photos, items, privately) {
  const found = items.map((item) => ({ item, files: pictures(item) })).filter(({ files }) => files.length);
  if (!found.length) return [];
  const own = photos.map((photo, i) => !photo.bad && el("li", {}, picture(photo),
    el("span", { text: photos.length > 1 ? t("photo_number", { number: i + 1 }) : t("your_photo") })));
  const row = () => el("ul", { class: "compare" }, ...own, ...found.flatMap(({ item, files }, i) => files.slice(0, i ? 1 : 3).map(({ file, source }) =>
    el("li", {}, el("img", { src: `reference/${file}`, alt: className(item), loading: "lazy", class: "small" }), el("span", { text: className(item) }),
      source && el("small", { text: t("source", { text: source }) })))));
  const ask = button(t("compare_load"), () => { ask.parentNode.replaceWith(row()); $("result").focus({ preventScroll: true }); }, "minor", "compare-load");
  return section(t("compare"), privately ? el("div", { class: "compare-ask" }, ask, el("p", { class: "hint", text: t("compare_hint") })) : row());
}

// ---- answers -------------------------------------------------------------------------------------------------------

// context: { photos, by: "browser" or "server", sent: "none", "copy" or "whole", notes: sentences, action: a button or false, privately }
export function showAnswer(answer, context) {
  const poor = answer.decision !== "rejected" && answer.rejection.photo[0];
  const notes = [poor && `${t(`why_${POOR[poor.measure]}`)} ${t(`do_${POOR[poor.measure]}`)}`, ...context.notes].filter(Boolean);
  const doubt = Boolean(poor) || answer.agreement?.agree === false || answer.conditioned?.agrees === false;
  const view = { answered, rolled_up: rolledUp, rejected }[answer.decision](answer, { ...context, doubt });
  show(answer.decision, context.by,
    badges(view.badge, context.sent),
    el("div", { class: "verdict" }, el("div", {}, ...view.names), el("div", { class: "shots" }, ...context.photos.map(picture))),
    ...notes.map((text) => el("p", { class: "note", text })), ...view.nodes,
    context.action && el("p", { class: "more" }, context.action), details(answer, context.by));
  say(...view.spoken, ...notes, `${t(`sent_${context.sent}`)}.`);
}

function badges([kind, text], sent) {
  return el("p", { class: "badges" }, el("span", { class: `badge ${kind}`, text }),
    sent && el("span", { class: "badge by", text: t(`sent_${sent}`) }));
}

function answered(answer, { photos, privately, doubt }) {
  const flat = answer.species === answer.disease;
  const { joint } = answer.probabilities;
  const kind = flat ? "named" : answer.healthy ? "healthy" : "ill";
  const sure = doubt ? Math.min(1, level(joint)) : level(joint);
  const say_ = t(answer.conditioned?.agrees === false ? "sure_if" : sure < level(joint) ? "sure_but" : `sure_${sure}`, { share: percent(joint), said: called(answer.species) });
  const others = answer.alternatives.filter((item) => item.probability >= 0.01
    && (item.species !== answer.species || (item.disease ?? item.species) !== answer.disease));
  const items = [{ species: answer.species, disease: answer.disease, probability: joint }, ...others].slice(0, MANY);
  const row = [answer.disease, answer.species].map((of) => advice(answer.species, of)).find((one) => one?.text || one?.severity || one?.treatment || one?.link);
  return {
    badge: [{ named: "plain", healthy: "well", ill: "ill" }[kind], t(`${kind}_${sure}`)],
    names: [...names("h2", "name", answer.species), ...(flat ? [] : names("p", "second", answer.species, answer.disease)),
      el("p", { class: "say", text: say_ })],
    nodes: [
      flat && !row ? null : nextStep(flat ? "" : t(sure > (kind === "ill" ? 0 : 1) ? `next_${kind}` : "next_perhaps"), row),
      ...section(t("how_sure"), bars(items.map((item) => ({ name: className(item), share: item.probability })))),
      ...compare(photos, items, privately),
    ],
    spoken: [`${className(answer)}.`, say_],
  };
}

// That photos disagree, and how, is told by a note.
const why = (reason) => reason !== "photos_disagree" && t(`why_${reason}`);

function rolledUp(answer, { photos, privately }) {
  const { species } = answer.probabilities;
  const { reason } = answer.rejection;
  const items = answer.alternatives.filter((item) => item.species === answer.species && item.disease && item.probability >= 0.01).slice(0, MANY);
  const say_ = reason ? why(reason) : answer.conditioned ? t("said_only", { said: called(answer.species) })
    : t(`plant_${level(species)}`, { share: percent(species) });
  const known = reason !== "unknown_disease" && items.length > 0;
  return {
    badge: ["plain", t("plant_only")],
    names: [...names("h2", "name", answer.species), say_ && el("p", { class: "say", text: say_ })],
    nodes: [
      nextStep(t(reason ? `do_${reason}` : "next_perhaps")),
      ...(known ? section(t("may_have"), bars(items.map((item) => ({ name: title(called(item.species, item.disease)), share: item.probability })))) : []),
      ...(known ? compare(photos, items, privately) : []),
    ],
    spoken: [`${title(called(answer.species))}.`, say_],
  };
}

function rejected(answer, { photos, privately }) {
  const { reason } = answer.rejection;
  const unsure = ["unsure", "photos_disagree"].includes(reason);
  const heading = t(Object.values(POOR).includes(reason) ? "title_poor" : ["not_a_plant", "unknown_species"].includes(reason) ? "title_unknown" : "title_unsure");
  const items = unsure ? answer.alternatives.slice(0, 3) : [];
  return {
    badge: ["plain", t("no_answer")],
    names: [el("h2", { class: "name", text: heading }), why(reason) && el("p", { class: "say", text: why(reason) })],
    nodes: [
      nextStep(t(`do_${reason}`)),
      // names without shares: what was rejected is no answer
      ...(unsure ? section(t("may_be"), el("ul", { class: "plain" }, ...items.map((item) => el("li", { text: className(item) })))) : []),
      ...compare(photos, items, privately),
    ],
    spoken: [`${heading}.`, why(reason)],
  };
}

// For those who run it, and those who want to know.
function details(answer, by) {
  const { quantile, photo } = answer.rejection;
  const rows = [
    [t("photo"), t("pixels", answer.image)],
    photo.length && [t("measures"), photo.map(({ measure, value, limit }) => t("measured", { name: t(`why_${POOR[measure]}`), value, limit })).join(" ")],
    quantile !== null && [t("unlike"), quantile >= 1 ? t("unlike_all") : t("unlike_more", { share: Math.floor(100 * quantile) })],
    answer.decision === "rejected" && [t("guess"), className(answer.alternatives[0])],
    [t("by"), t(`by_${by}`, answer.model)],
    [t("time"), t("took", { total: Math.round(answer.timings_ms.total), model: Math.round(answer.timings_ms.model) })],
  ].filter(Boolean);
  return el("details", {}, el("summary", { text: t("details"), id: "details" }),
    el("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })])));
}

// ---- everything else -----------------------------------------------------------------------------------------------

// error: its message, and what to do about it
export function showError({ message, advice: todo }, sent = "none") {
  show("error", "", badges(["wrong", t("failed")], sent === "none" ? null : sent), el("h2", { class: "name", text: t("no_answer_yet") }),
    el("p", { class: "say", text: message }), todo && nextStep(todo));
  say(t("failed"), message, todo);
}

const tips = [...$("result").children];

// Before an answer: what makes a good photo.
export function showTips() {
  if ($("result").dataset.state) show("", "", ...tips);
}

export function showWaiting(text, cancel) {
  const stop = button(t(cancel.key), cancel.click, "minor", "cancel");
  show("waiting", "", el("div", { class: "waiting" }, el("h2", { text }), el("div", { class: "progress", role: "progressbar", "aria-label": text }, el("i")), el("p", {}, stop)));
  say(text);
}

// Ask before a photo leaves the device whole. -> a promise of the answer, false where `signal` ends it
export function askWhole(signal) {
  return new Promise((done) => {
    const text = t("whole");
    signal.addEventListener("abort", () => done(false));
    show("question", "", el("h2", { class: "name", text: t("whole_title") }), el("p", { class: "say", text }),
      el("p", { class: "more" }, button(t("whole_yes"), () => done(true), "main", "whole-yes"), button(t("whole_no"), () => done(false), "", "whole-no")));
    say(t("whole_title"), text);
  });
}
