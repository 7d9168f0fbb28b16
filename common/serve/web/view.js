// What the page shows: answers, rejections and errors in plain words, bars, and the heatmap over the photo.

export const $ = (id) => document.getElementById(id);

// ---- small helpers -------------------------------------------------------------------------------------------------

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const words = (name) => name.replaceAll("_", " ");
export const title = (name) => words(name).charAt(0).toUpperCase() + words(name).slice(1);
const className = (item) => (item.disease === null || item.species === item.disease ? title(item.species)
  : `${title(item.species)}, ${words(item.disease)}`);

function percent(value) {
  if (value > 0.99 && value < 0.9995) return `${(100 * value).toFixed(1)} %`;
  if (value > 0 && value < 0.005) return "< 1 %";
  return `${Math.round(100 * value)} %`;
}

function certainty(value) {
  if (value >= 0.97) return "I am very sure";
  if (value >= 0.85) return "I am fairly sure";
  if (value >= 0.6) return "I think so, but I am not sure";
  return "This is only my best guess";
}

function bars(rows, kind = "") {
  return el("ul", { class: `bars ${kind}` }, ...rows.map(({ name, note, share }) => {
    const fill = el("i");
    fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    return el("li", {}, el("span", { class: "label" }, note ? el("small", { text: note }) : null, name),
      el("span", { class: "share", text: percent(share) }), el("div", { class: "bar", "aria-hidden": "true" }, fill));
  }));
}

function nextStep(text) {
  return el("div", { class: "next" }, el("b", { text: "What to do next" }), el("span", { text }));
}

function show(...children) {
  $("result").replaceChildren(...children.filter(Boolean));
}

// ---- answers -------------------------------------------------------------------------------------------------------

// source: { by: "browser" or "server", note: a sentence or null, ask: what a button to ask the server does, or null }
export function showAnswer(answer, { by, note = null, ask = null }) {
  const view = { answered, rolled_up: rolledUp, rejected }[answer.decision](answer);
  const button = ask && el("button", { type: "button", class: "button small", text: note ? "Ask the server again" : "Ask the server too" });
  button?.addEventListener("click", ask);
  const where = by === "server" ? "Answered by the server" : "Answered in your browser";
  const badges = el("p", { class: "badges" }, el("span", { class: `badge ${view.badge[0]}`, text: view.badge[1] }),
    el("span", { class: "badge by", text: where }));
  show(badges, note && el("p", { class: "note", text: note }), ...view.nodes,
    button && el("p", { class: "more" }, button), details(answer, by));
  Object.assign($("result").dataset, { state: answer.decision, by });
  $("spoken").textContent = [view.spoken, `${where}.`, note].filter(Boolean).join(" ");
}

function answered(answer) {
  const flat = answer.species === answer.disease;
  const { species, disease_given_species: given, joint } = answer.probabilities;
  const badge = flat ? ["plain", "Recognised"] : answer.healthy ? ["well", "Looks healthy"] : ["ill", "Disease found"];
  const rows = [{ note: "Plant", name: title(answer.species), share: species }];
  if (!flat) rows.push({ note: `Condition, if it is ${words(answer.species)}`, name: title(answer.disease), share: given });
  const others = answer.alternatives.filter((item) => item.species !== answer.species || item.disease !== answer.disease);
  const advice = flat ? null : nextStep(answer.healthy
    ? "Nothing on this leaf worries me. Look at a few more leaves, undersides too, and again in a week."
    : "Check two or three other leaves. If they show the same marks, get advice for this disease before you treat it.");
  return {
    badge,
    nodes: [
      el("h2", { class: "name", text: title(answer.species) }),
      flat ? null : el("p", { class: "second", text: title(answer.disease) }),
      el("p", { class: "say soft", text: `${certainty(joint)}: ${percent(joint)}${flat ? "" : " for plant and condition together"}.` }),
      advice, el("h3", { text: "How I got there" }), bars(rows),
      others.length ? el("h3", { text: "What else it could be" }) : null,
      others.length ? bars(others.map((item) => ({ name: className(item), share: item.probability })), "thin") : null,
    ],
    spoken: `${className(answer)}. ${certainty(joint)}, ${percent(joint)}.`,
  };
}

function rolledUp(answer) {
  const { species } = answer.probabilities;
  const inside = answer.alternatives.filter((item) => item.species === answer.species && item.disease !== null);
  return {
    badge: ["plain", "Plant only"],
    nodes: [
      el("h2", { class: "name", text: title(answer.species) }),
      el("p", { class: "say soft", text: answer.rejection.message
        || `I know the plant (${percent(species)}), but not well enough what it has.` }),
      nextStep("Take a closer photo of the marks themselves, in focus and even light, or of another leaf that shows them better."),
      el("h3", { text: "How I got there" }),
      bars([{ note: "Plant", name: title(answer.species), share: species }]),
      inside.length ? el("h3", { text: "It may have" }) : null,
      bars(inside.map((item) => ({ name: title(item.disease), share: species ? item.probability / species : 0 })), "thin"),
    ],
    spoken: `${title(answer.species)}. ${answer.rejection.message || "I cannot tell its condition."}`,
  };
}

function rejected(answer) {
  const unknown = ["not_a_plant", "unknown_species"].includes(answer.rejection.reason);
  const heading = unknown ? "Not a plant I know" : answer.rejection.photo.length ? "The photo is too poor" : "I cannot tell";
  // the server's text is what is wrong, then what to do about it
  const [problem, ...rest] = answer.rejection.message.split(/(?<=\.) /);
  const guesses = bars(answer.alternatives.map((item) => ({ name: className(item), share: item.probability })), "thin");
  return {
    badge: ["plain", "No answer"],
    nodes: [
      el("h2", { class: "name", text: heading }),
      el("p", { class: "say", text: problem }),
      nextStep(rest.join(" ")),
      unknown
        ? el("details", { class: "guesses" }, el("summary", { text: "What I would have guessed" }), guesses)
        : el("div", { class: "guesses" }, el("h3", { text: "My best guesses" }), guesses),
    ],
    spoken: `${heading}. ${answer.rejection.message}`,
  };
}

function details(answer, by) {
  const rows = [["Photo", `${answer.image.width} × ${answer.image.height} pixels`],
    ["Time", `${Math.round(answer.timings_ms.total)} ms in ${by === "server" ? "the server" : "your browser"}, ${
      Math.round(answer.timings_ms.model)} ms of it the model`],
    ["Model", `${answer.model.file}, version ${answer.model.version}`]];
  const { quantile } = answer.rejection;
  if (quantile !== null) {
    rows.splice(1, 0, ["Unlike known plants", quantile >= 1 ? "more than every plant photo I was checked with"
      : `more than ${percent(quantile)} of the plant photos I was checked with`]);
  }
  const list = el("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })]));
  return el("details", {}, el("summary", { text: "Details" }), list);
}

export function showError(message, advice) {
  show(el("span", { class: "badge wrong", text: "That did not work" }),
    el("h2", { class: "name", text: "No answer yet" }), el("p", { class: "say", text: message }), advice ? nextStep(advice) : null);
  Object.assign($("result").dataset, { state: "error", by: "" });
  $("spoken").textContent = `That did not work. ${message}`;
}

export function showWaiting() {
  show(el("div", { class: "waiting" }, el("span"), el("span"), el("span"), el("span")));
  Object.assign($("result").dataset, { state: "waiting", by: "" });
  $("spoken").textContent = "Looking at your photo.";
}

// ---- heatmap -------------------------------------------------------------------------------------------------------

export function drawHeat(rows) {
  const canvas = $("heat");
  const [height, width] = [rows?.length ?? 0, rows?.[0]?.length ?? 0];
  canvas.hidden = true;
  $("heat-switch").hidden = !(height && width);
  $("heat-switch").setAttribute("aria-pressed", "false");
  if (!height || !width) return;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  rows.flat().forEach((value, i) => {
    // where it looked keeps its light, the rest is shaded: readable on any leaf and in any kind of colour sight
    picture.data.set([12, 28, 18, Math.round(165 * (1 - Math.min(1, Math.max(0, value))))], 4 * i);
  });
  context.putImageData(picture, 0, 0);
}

export function toggleHeat() {
  $("heat").hidden = !$("heat").hidden;
  $("heat-switch").setAttribute("aria-pressed", String(!$("heat").hidden));
}

