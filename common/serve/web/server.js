// Asking the server. What goes there is a small copy of the photo, without metadata, or the photo where this browser cannot read it.

const PATIENCE = 30; // s without an answer, besides what a slow connection needs to send the photo
const SLOWEST = 20; // bytes/ms
const PAUSE = 10; // s that a busy server may ask to wait; after longer ones it is for the person to come back

export class ServerError extends Error {}

const fail = (message, advice) => Object.assign(new ServerError(message), { advice });

// What to say of an answer that is none: of the server, or of a proxy before it, which writes HTML.
function describe(status, wait, said) {
  const later = `Wait ${wait > 90 ? `${Math.ceil(wait / 60)} minutes` : "a minute"}, then choose the photo again.`;
  const tell = "If it stays so, tell whoever runs this server.";
  if (status === 401) return fail("The server only answers programs that have its key.", "Ask whoever runs this server.");
  if (status === 413) return fail(said ?? "The photo is too large to be sent.", "Choose a smaller one.");
  if (status === 429) return fail(said ?? "Too many photos came from your connection.", later);
  if (status === 503) return fail(said ?? "The server is busy.", later);
  if (status === 502 || status === 504) return fail("The server does not answer at the moment.", later);
  if (status < 300) return fail("Something else than the server answered, perhaps the sign-in page of a network.", "Load this page again, and sign in where you are asked to.");
  if (said && status < 500) return fail(said, "Choose another photo: JPEG, PNG and WebP work.");
  return fail(said ?? `The server answered ${status}.`, `Try again. ${tell}`);
}

// Seconds that an answer asks to wait: it gives them, or a date.
function pauseOf(response) {
  const text = response.headers.get("retry-after") ?? "";
  return Number(text) || Math.max(0, (Date.parse(text) - Date.now()) / 1000) || 1;
}

// fetch and its JSON, {} where that is none, within a time.
async function load(query, options, signal) {
  const control = new AbortController();
  const stop = () => control.abort(signal.reason);
  signal.addEventListener("abort", stop);
  const timer = setTimeout(() => control.abort(fail(`The server has not answered for ${PATIENCE} seconds.`, "See whether your connection works, then choose the photo again.")),
    1000 * PATIENCE + options.size / SLOWEST);
  try {
    signal.throwIfAborted();
    const response = await fetch(`predict?${query}`, { ...options, method: "POST", signal: control.signal });
    return [response, await response.json().catch((error) => { if (control.signal.aborted) throw error; return {}; })];
  } catch (error) {
    if (control.signal.aborted) throw control.signal.reason;
    throw navigator.onLine
      ? fail("The server cannot be reached.", "See whether it is still running and you are still connected, then choose the photo again.")
      : fail("You are offline.", "Connect to the network, then choose the photo again.");
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

// photos: [{ blob, shortSide: px of the photo it is a copy of, or null where it is the photo itself }], of one plant.
export async function ask(photos, signal) {
  const query = new URLSearchParams({ heatmap: "1" });
  const sides = photos.map((photo) => photo.shortSide).filter(Boolean);
  if (sides.length) query.set("short_side", String(Math.min(...sides)));
  let [body, headers] = [photos[0].blob, { "content-type": photos[0].blob.type || "application/octet-stream" }];
  if (photos.length > 1) {
    [body, headers] = [new FormData(), {}];
    photos.forEach(({ blob }, i) => body.append("photo", blob, `photo-${i + 1}`));
  }
  const size = photos.reduce((sum, { blob }) => sum + blob.size, 0);
  for (let attempt = 0; ; attempt += 1) {
    const [response, answer] = await load(query, { body, headers, size }, signal);
    if (response.ok && answer.decision) return answer;
    const wait = pauseOf(response);
    if (response.status !== 503 || attempt === 3 || wait > PAUSE) throw describe(response.status, wait, answer.error?.message);
    await new Promise((done) => setTimeout(done, 1000 * wait));
  }
}
