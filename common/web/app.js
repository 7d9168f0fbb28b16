// Foliar's page: takes a photo, asks the server, and says the answer in plain words.
"use strict";

const SHRINK_TO = 2048; // long side of a photo that had to be made smaller or turned into a JPEG before sending
const READABLE = new Set(["image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/bmp", "image/tiff"]);
const $ = (id) => document.getElementById(id);
let limitMb = 20; // the server's; /model says
let current = null; // the request under way, so that a newer photo can call it off

// ---- small helpers -------------------------------------------------------------------------------------------------

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const words = (name) => name.replaceAll("_", " ");
const title = (name) => words(name).charAt(0).toUpperCase() + words(name).slice(1);
const leafName = (item) => (item.species === item.disease ? title(item.species)
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

function showAnswer(answer) {
  const view = { answered, rolled_up: rolledUp, rejected }[answer.decision](answer);
  show(...view.nodes, details(answer));
  $("result").dataset.state = answer.decision;
  $("spoken").textContent = view.spoken;
}

function answered(answer) {
  const flat = answer.species === answer.disease;
  const { species, disease_given_species: given, leaf } = answer.probabilities;
  const badge = flat ? ["plain", "Recognised"] : answer.healthy ? ["well", "Looks healthy"] : ["ill", "Disease found"];
  const rows = [{ note: "Plant", name: title(answer.species), share: species }];
  if (!flat) rows.push({ note: `Condition, if it is ${words(answer.species)}`, name: title(answer.disease), share: given });
  const others = answer.alternatives.filter((item) => item.species !== answer.species || item.disease !== answer.disease);
  const advice = flat ? null : nextStep(answer.healthy
    ? "Nothing on this leaf worries me. Look at a few more leaves, undersides too, and again in a week."
    : "Check two or three other leaves. If they show the same marks, get advice for this disease before you treat it.");
  return {
    nodes: [
      el("span", { class: `badge ${badge[0]}`, text: badge[1] }),
      el("h2", { class: "name", text: title(answer.species) }),
      flat ? null : el("p", { class: "second", text: title(answer.disease) }),
      el("p", { class: "say soft", text: `${certainty(leaf)}: ${percent(leaf)}${flat ? "" : " for plant and condition together"}.` }),
      advice, el("h3", { text: "How I got there" }), bars(rows),
      others.length ? el("h3", { text: "What else it could be" }) : null,
      others.length ? bars(others.map((item) => ({ name: leafName(item), share: item.probability })), "thin") : null,
    ],
    spoken: `${leafName(answer)}. ${certainty(leaf)}, ${percent(leaf)}.`,
  };
}

function rolledUp(answer) {
  const { species } = answer.probabilities;
  const inside = answer.alternatives.filter((item) => item.species === answer.species);
  return {
    nodes: [
      el("span", { class: "badge plain", text: "Plant only" }),
      el("h2", { class: "name", text: title(answer.species) }),
      el("p", { class: "say soft", text: answer.rejection.message
        || `I know the plant (${percent(species)}), but not well enough what it has.` }),
      nextStep("Take a closer photo of the marks themselves, in focus and even light, or of another leaf that shows them better."),
      el("h3", { text: "How I got there" }),
      bars([{ note: "Plant", name: title(answer.species), share: species }]),
      el("h3", { text: "It may have" }),
      bars(inside.map((item) => ({ name: title(item.disease), share: species ? item.probability / species : 0 })), "thin"),
    ],
    spoken: `${title(answer.species)}. I cannot tell its condition.`,
  };
}

function rejected(answer) {
  const stranger = ["not_a_plant", "unknown_species"].includes(answer.rejection.reason);
  const heading = stranger ? "Not a plant I know" : answer.rejection.photo.length ? "The photo is too poor" : "I cannot tell";
  // the server's text is what is wrong, then what to do about it
  const [problem, ...rest] = answer.rejection.message.split(/(?<=\.) /);
  const guesses = bars(answer.alternatives.map((item) => ({ name: leafName(item), share: item.probability })), "thin");
  return {
    nodes: [
      el("span", { class: "badge plain", text: "No answer" }),
      el("h2", { class: "name", text: heading }),
      el("p", { class: "say", text: problem }),
      nextStep(rest.join(" ")),
      stranger
        ? el("details", { class: "guesses" }, el("summary", { text: "What I would have guessed" }), guesses)
        : el("div", { class: "guesses" }, el("h3", { text: "My best guesses" }), guesses),
    ],
    spoken: `${heading}. ${answer.rejection.message}`,
  };
}

function details(answer) {
  const rows = [["Photo", `${answer.image.width} × ${answer.image.height} pixels`],
    ["Time", `${Math.round(answer.timings_ms.total)} ms in the server, ${Math.round(answer.timings_ms.model)} ms of it the model`],
    ["Model", `${answer.model.file}, version ${answer.model.version}`]];
  const { quantile } = answer.rejection;
  if (quantile !== null) {
    rows.splice(1, 0, ["Strangeness", quantile >= 1 ? "stranger than every plant photo I was checked with"
      : `stranger than ${percent(quantile)} of the plant photos I was checked with`]);
  }
  const list = el("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [el("dt", { text: name }), el("dd", { text })]));
  return el("details", {}, el("summary", { text: "Details" }), list);
}

function showError(message, advice) {
  show(el("span", { class: "badge wrong", text: "That did not work" }),
    el("h2", { class: "name", text: "No answer yet" }), el("p", { class: "say", text: message }), advice ? nextStep(advice) : null);
  $("result").dataset.state = "error";
  $("spoken").textContent = `That did not work. ${message}`;
}

function showWaiting() {
  show(el("div", { class: "waiting" }, el("span"), el("span"), el("span"), el("span")));
  $("result").dataset.state = "waiting";
  $("spoken").textContent = "Looking at your photo.";
}

// ---- heatmap -------------------------------------------------------------------------------------------------------

function drawHeat(rows) {
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

function toggleHeat() {
  $("heat").hidden = !$("heat").hidden;
  $("heat-switch").setAttribute("aria-pressed", String(!$("heat").hidden));
}

// ---- sending -------------------------------------------------------------------------------------------------------

// A photo is sent as it is, so that the server sees its own pixels. Only one that the server would refuse, for its size
// or its format (an iPhone's HEIC), is drawn smaller as a JPEG, where this browser can.
async function sendable(file) {
  if (file.size <= limitMb * 1e6 && (READABLE.has(file.type) || !file.type.startsWith("image/"))) return file;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, SHRINK_TO / Math.max(bitmap.width, bitmap.height));
    const canvas = el("canvas");
    canvas.width = Math.round(bitmap.width * scale);
    canvas.height = Math.round(bitmap.height * scale);
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return (await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92))) ?? file;
  } catch {
    return file; // the server says what is wrong with it
  }
}

async function ask(body, signal) {
  for (let attempt = 0; ; attempt += 1) {
    const response = await fetch("/predict?heatmap=1", {
      method: "POST", body, signal, headers: { "content-type": body.type || "application/octet-stream" } });
    if (response.status !== 503 || attempt === 3) return response;
    await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("retry-after")) || 1)));
  }
}

async function handle(file) {
  current?.abort();
  const control = new AbortController();
  current = control;
  preview(file);
  showWaiting();
  setBusy(true);
  try {
    const response = await ask(await sendable(file), control.signal);
    const answer = await response.json().catch(() => ({}));
    if (current !== control) return;
    if (!response.ok) {
      const advice = response.status === 503 ? "Wait a moment, then choose the photo again."
        : response.status >= 500 ? "Try again. If it stays so, tell whoever runs this server." : "Choose another photo: JPEG, PNG and WebP work.";
      showError(answer.error?.message ?? `The server answered ${response.status}.`, advice);
      return;
    }
    drawHeat(answer.heatmap);
    showAnswer(answer);
    if (matchMedia("(max-width: 760px)").matches) $("result").scrollIntoView({ block: "nearest" }); // it is below the photo
  } catch (error) {
    if (current !== control || error.name === "AbortError") return;
    showError("The server cannot be reached.", "See whether it is still running and you are still connected, then choose the photo again.");
  } finally {
    if (current === control) setBusy(false);
  }
}

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("result").setAttribute("aria-busy", String(busy));
}

function preview(file) {
  const image = $("preview");
  URL.revokeObjectURL(image.src);
  drawHeat(null);
  const seen = (good) => {
    $("frame").hidden = !good;
    $("invite").hidden = good;
    $("stage").classList.toggle("full", good);
  };
  image.onload = () => {
    $("frame").style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    seen(true);
  };
  image.onerror = () => seen(false);
  image.src = URL.createObjectURL(file);
}

// ---- wiring --------------------------------------------------------------------------------------------------------

function firstFile(transfer) {
  const file = [...(transfer?.files ?? [])][0];
  if (file) handle(file);
  return Boolean(file);
}

for (const [button, input] of [["pick", "file"], ["shoot", "camera"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    firstFile($(input));
    $(input).value = ""; // so that the same photo can be chosen again
  });
}
$("heat-switch").addEventListener("click", toggleHeat);
document.addEventListener("paste", (event) => { if (firstFile(event.clipboardData)) event.preventDefault(); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (!firstFile(event.dataTransfer)) showError("What you dropped is no file.", "Save the picture first, then drop or choose the saved file.");
});

fetch("/model").then((response) => response.json()).then((model) => {
  limitMb = model.limits.max_upload_mb;
  const flat = model.num_leaves === model.num_species;
  $("known-summary").textContent = `What I know: ${model.num_species} plants${flat ? "" : `, ${model.num_leaves} conditions`}`;
  $("known-list").replaceChildren(...model.classes.map(({ species, diseases }) => el("li", { text: title(species) },
    flat ? null : el("small", { text: diseases.map(words).join(", ") }))));
  $("known").hidden = false;
}).catch(() => {}); // the page works without this list
