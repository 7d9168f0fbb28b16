// The work behind the page, off its thread: photo -> pixels -> light model -> answer. It never sends a photo anywhere.

import { ask, best, decide, heatmap } from "./decide.js";
import { unpack } from "./heads.js";
import { canRead, png, quality, read, resize } from "./pixels.js";

const WHOLE = 1 << 18; // a file of heads up to this size is fetched at once: a range per species would save nothing
let facts = null; // of /page.json
let pixels = false; // whether they can be read here
let model = null; // { ort, session, settings }
let heads = null; // all of heads.bin, once it is here
const kept = new Map(); // heads by species
let last = null; // the photo that was read last

const jobs = { checkPixels, load, answer, small, fetchAll };

onmessage = async ({ data: { id, job, ...arguments_ } }) => {
  try {
    postMessage({ id, result: await jobs[job](arguments_) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error), kind: error?.kind, values: error?.values });
  }
};

// Check whether a page may read pixels here. -> { pixels, why: not (a text's key), or null }
async function checkPixels({ facts: given }) {
  facts = given;
  const young = typeof OffscreenCanvas === "function";
  pixels = young && await canRead().catch(() => false);
  return { pixels, why: pixels ? null : young ? "blurring" : "old" };
}

// Load the model where there is one, and all heads where that is wished. -> { light, and where it is false: why }
async function load({ all }) {
  if (!pixels) return { light: false };
  if (!facts.light) return { light: false, why: "no_light" };
  try {
    [model] = await Promise.all([open(facts.light), all || facts.light.heads.bytes <= WHOLE ? fetchAll() : null]);
    return { light: true };
  } catch (error) {
    console.warn(error);
    return { light: false, why: "not_loaded" };
  }
}

async function open({ script, wasm, settings, onnx }) {
  const get = async (url) => {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status}`);
    return response;
  };
  const [ort, plain, bytes] = await Promise.all([
    import(script).then((module) => {
      module.env.wasm.numThreads = 1;
      module.env.wasm.wasmPaths = { wasm: new URL(wasm, location.href).href };
      return module;
    }),
    get(settings).then((response) => response.json()), get(onnx).then((response) => response.arrayBuffer())]);
  const session = await ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ["wasm"] });
  const size = plain.preprocessing.size;
  const blank = new ort.Tensor("uint8", new Uint8Array(3 * size * size), [1, size, size, 3]);
  const warm = new Promise((done) => setTimeout(done)).then(() => session.run({ images: blank }));
  return { ort, session, settings: plain, warm };
}

// Fetch all heads, so that no later request tells which species a photo shows.
async function fetchAll() {
  if (heads || !facts.light) return;
  const response = await fetch(facts.light.heads.url);
  if (response.ok) heads = await response.arrayBuffer();
}

async function headOf(species) {
  if (!kept.has(species)) {
    const { offsets } = model.settings.heads;
    const [start, stop] = [offsets[species], offsets[species + 1]];
    let record = heads?.slice(start, stop);
    if (!record) {
      const response = await fetch(facts.light.heads.url, { headers: { range: `bytes=${start}-${stop - 1}` } }).catch(() => null);
      if (!response?.ok) return null;
      record = await response.arrayBuffer();
      if (response.status === 200) record = record.slice(start, stop); // a server between us may not know ranges
    }
    kept.set(species, unpack(record, model.settings.model.sha256.slice(0, 8), model.settings.diseases[species]));
  }
  return kept.get(species);
}

async function shrunk(photo, longSide) {
  if (!photo.shrunk.has(longSide)) photo.shrunk.set(longSide, await read(photo.blob, longSide, photo.crop));
  return photo.shrunk.get(longSide);
}

// Answer a photo, as POST /predict would; without a model only its size. species: the known one, or null. Throws where it cannot be read.
async function answer({ blob, crop, species: said }) {
  const began = performance.now();
  last = { blob, crop, shrunk: new Map() };
  const longSide = (model?.settings.preprocessing ?? facts.server)?.long_side ?? null;
  let photo;
  try {
    photo = await shrunk(last, longSide);
  } catch {
    throw Object.assign(new Error("cannot be decoded"), { kind: "unreadable" });
  }
  const image = { width: photo.width, height: photo.height };
  if (Math.min(photo.width, photo.height) < facts.min_side) throw Object.assign(new Error("too small"), { kind: "small", values: { ...image, least: facts.min_side } });
  if (!model) return { image };
  const { ort, session, settings, warm } = model;
  const input = resize(photo.rgb, settings.preprocessing.size, facts.tall_first);
  await warm; // its first run takes longer, and it runs one picture at a time
  const decoded = performance.now();
  const outputs = await session.run({ images: new ort.Tensor("uint8", input.data, [1, input.height, input.width, 3]) });
  const done = performance.now();
  const [species, ood] = [Array.from(outputs.species.data), Array.from(outputs.ood.data)];
  const known = settings.species.indexOf(said);
  const alone = known < 0 ? null : (await best(settings, species, outputs.feature.data, headOf)).species;
  const found = await best(settings, species, outputs.feature.data, headOf, known);
  const wish = ask(settings, species, found, ood);
  const measures = { ...quality(input), short_side: Math.min(photo.width, photo.height) };
  const result = decide(settings, species, found, ood, measures, facts.top_k);
  const doubtful = result.decision === "rolled_up" || result.rejection.reason === "unsure";
  return {
    ...result, image, conditioned: known < 0 ? null : { agrees: alone === known, best_before: { species: settings.species[alone] } },
    model: { file: settings.model.file, version: settings.version },
    heatmap: heatmap(settings, outputs.map.data, outputs.map.dims.slice(1), kept.get(found.species), found.disease),
    ask: wish, asks: wish === null ? doubtful : settings.deferral.threshold !== null && wish >= settings.deferral.threshold,
    numbers: { species, ood, class: [found.species, found.disease], own: [...found.heads].map(([s, { own }]) => [s, own]), measures },
    timings_ms: { decode: decoded - began, model: done - decoded, total: performance.now() - began },
  };
}

// The last photo as a PNG of the served model's size: what is sent instead of the photo itself.
async function small() {
  const photo = await shrunk(last, facts.server.long_side ?? null);
  return png(resize(photo.rgb, facts.server.size, facts.tall_first));
}
