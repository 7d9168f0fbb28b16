// The page's end of worker.js: each call is a message there and back.

const waiting = new Map();
const worker = make(); // at once: it loads its modules while the page still does
let count = 0;

function call(job, values = {}) {
  count += 1;
  const id = count;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, job, ...values });
  });
}

function make() {
  try {
    return new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  } catch {
    return null;
  }
}

const OLD = { pixels: false, light: false, why: "old" };

// Start the worker. -> { pixels: whether photos can be read here, light: false, why (a text's key), loading: a promise of { light, why } }
export async function start(facts, all) {
  if (!worker) return OLD;
  worker.onmessage = ({ data: { id, result, error, kind, values } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(Object.assign(new Error(error), { kind, values }));
  };
  const broken = new Promise((resolve) => { worker.onerror = () => resolve(OLD); });
  const pixels = await Promise.race([call("checkPixels", { facts }), broken]);
  return { ...pixels, light: false, loading: pixels === OLD ? null : call("load", { all }) };
}

// As POST /predict answers, or only { image } where there is no model. crop: { x, y, side } in shares of the photo's width, height and short side, or null; species: the known one, or null.
export const answer = (blob, crop = null, species = null) => call("answer", { blob, crop, species });
export const small = () => call("small"); // the photo read last, as a PNG of the served model's size
export const fetchAll = () => call("fetchAll"); // all disease heads, so that no request tells which species a photo shows
