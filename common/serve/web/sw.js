// Keeps the page, the model and the runtime, so that the page works without a connection. It never sees a photo: only GET is its business.
"use strict";

const version = new URL(location.href).searchParams.get("v"); // the page names it: a hash over all that is kept
const home = new URL("./", location.href); // its scope: other pages of this origin keep their own copies
const mine = `foliar ${home.pathname} `;
const cacheName = mine + version;
const patience = 3000; // ms for the server to answer before the copy is taken

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const cache = await caches.open(cacheName);
  const facts = await (await fetch("page.json")).json();
  if (facts.version !== version) throw new Error("the server has moved on"); // the page will name the new version
  const light = facts.light ? [facts.light.script, facts.light.wasm, facts.light.settings, facts.light.onnx] : [];
  // larger ones are kept record by record; without a server the page fetches them whole
  if (facts.light && (facts.light.heads.bytes <= 2e6 || !facts.server)) light.push(facts.light.heads.url);
  await cache.addAll([...facts.shell, ...light]);
  await self.skipWaiting();
})()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith(mine) && name !== cacheName) await caches.delete(name);
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(home.href)) return;
  const path = request.url.slice(home.href.length);
  if (/^(files|reference)[/]/.test(path)) event.respondWith(request.headers.has("range") ? range(request) : kept(request));
  else if (!path.startsWith("sw.js")) event.respondWith(fresh(request));
});

// Under files/ an address holds the file's hash, and pictures to compare with are of this version: what is kept stays right.
async function kept(request) {
  const cache = await caches.open(cacheName);
  const found = await cache.match(request.url);
  if (found) return found;
  const response = await fetch(request);
  if (response.status === 200) await cache.put(request.url, response.clone());
  return response;
}

// A record of heads.bin: out of the whole file, or kept under an address of its own.
async function range(request) {
  const cache = await caches.open(cacheName);
  const whole = await cache.match(request.url);
  const [start, stop] = request.headers.get("range").replace("bytes=", "").split("-").map(Number);
  if (whole) return new Response((await whole.arrayBuffer()).slice(start, stop + 1), { status: 206 });
  const name = `${request.url}?bytes=${start}-${stop}`;
  const found = await cache.match(name);
  if (found) return new Response(await found.arrayBuffer(), { status: 206 });
  const response = await fetch(request);
  if (response.status === 206) await cache.put(name, new Response(await response.clone().arrayBuffer()));
  return response;
}

// The page itself: from the server where it answers soon, else (late, no connection, a proxy's 5xx) the copy.
async function fresh(request) {
  const address = request.mode === "navigate" && request.url.startsWith(`${home.href}index.html`) ? home.href : request.url;
  const copy = () => caches.match(address, { ignoreSearch: true, cacheName });
  const late = new Promise((done) => setTimeout(done, patience)).then(copy);
  const asked = fetch(request);
  const found = asked.then((response) => (response.status < 500 ? response : copy()), copy);
  const first = await Promise.race([found, late]);
  return first ?? asked;
}
