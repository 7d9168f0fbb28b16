// The photos of one plant: the one that is shown, the square cut out of it, small ones of all, and the heatmap over it.

import { $, el, t } from "./page.js";

const MOST = 5; // photos of one plant
const LEAST = 0.1; // side of a square, as a share of the photo's short side
let photos = []; // { file, url, crop: null or { x, y, side } in shares of width, height and short side, bad: cannot be shown }
let shown = 0;
let canCut = false; // whether this browser can read pixels, and so answer a part of a photo
let changed = () => {}; // called where what would be asked about is another

export const all = () => photos;
export const current = () => photos[shown];
export const allowCut = (can) => {
  canCut = can;
  if (current()) offerCut();
};
export const onChange = (callback) => { changed = callback; };

// Take files as the photos of a new plant, or as more of the same.
export function take(files, more) {
  if (!more) {
    photos.forEach(({ url }) => URL.revokeObjectURL(url));
    photos = [];
  }
  const left = Math.max(0, photos.length + files.length - MOST);
  shown = Math.min(photos.length, MOST - 1);
  photos.push(...files.slice(0, files.length - left).map((file) => ({ file, url: URL.createObjectURL(file), crop: null, bad: false })));
  $("left-out").hidden = !left;
  $("left-out").textContent = left ? t("too_many", { most: MOST, left }) : "";
  show();
}

function show() {
  const photo = current();
  drawHeat(null);
  const ready = (good) => {
    photo.bad = !good;
    $("frame").hidden = !good;
    $("blank").hidden = good;
    $("invite").hidden = true;
    $("stage").classList.toggle("full", good);
    offerCut();
    place();
    thumbs();
  };
  $("preview").onload = () => {
    $("frame").style.setProperty("--ratio", $("preview").naturalWidth / $("preview").naturalHeight);
    ready(true);
  };
  $("preview").onerror = () => ready(false);
  $("preview").src = photo.url;
  changed();
}

function offerCut() {
  $("crop").hidden = $("crop-hint").hidden = current().bad || !canCut;
}

function thumbs() {
  $("thumbs").hidden = photos.length < 2;
  const focused = $("thumbs").contains(document.activeElement);
  $("thumbs").replaceChildren(...photos.map((photo, i) => {
    const button = el("button", { type: "button", "aria-label": t("photo_number", { number: i + 1 }), "aria-pressed": String(i === shown) },
      picture(photo));
    button.addEventListener("click", () => { shown = i; show(); });
    return el("li", {}, button);
  }));
  if (focused) $("thumbs").children[shown].firstChild.focus();
}

// A photo, or what is cut out of it, small; without a name, as it stands beside words.
export function picture(photo) {
  const image = el("img", { src: photo.url, alt: "", class: "small" });
  if (photo.crop) {
    const { x, y, side } = photo.crop;
    image.addEventListener("load", () => {
      const [w, h] = [image.naturalWidth, image.naturalHeight];
      const [across, down] = [(side * Math.min(w, h)) / w, (side * Math.min(w, h)) / h];
      const canvas = el("canvas", { class: "small", width: 240, height: 240 });
      canvas.getContext("2d").drawImage(image, x * w, y * h, across * w, down * h, 0, 0, 240, 240);
      image.replaceWith(canvas);
    }, { once: true });
  }
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "small", text: "?" })), { once: true });
  return image;
}

// Some files are shown that a worker cannot decode (on some phones HEIC): what is shown, as a PNG. Throws where it is not shown either.
export async function redraw(url) {
  const image = el("img", { src: url });
  await image.decode();
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d").drawImage(image, 0, 0);
  return new Promise((done) => { canvas.toBlob(done); });
}

// ---- the square ----------------------------------------------------------------------------------------------------

// The photo as it stands on the screen: px; `short` is its short side.
function extent() {
  const { left, top, width, height } = $("preview").getBoundingClientRect();
  return { left, top, width, height, short: Math.min(width, height) };
}

function place() {
  const crop = current()?.crop;
  $("square").hidden = !crop;
  $("crop").textContent = t(crop ? "uncrop" : "crop");
  if (crop) frameAt($("square"), crop);
}

// Lay an element over a square of the photo, or without a side over all of it.
function frameAt(node, { x, y, side }) {
  const { width, height, short } = side ? extent() : { width: 1, height: 1, short: 1 };
  const style = { left: x, top: y, width: ((side ?? 1) * short) / width, height: ((side ?? 1) * short) / height };
  for (const [name, share] of Object.entries(style)) node.style[name] = `${100 * share}%`;
}

// Cut out the square with its corner and side in px on the screen, moved to lie within the photo; null: nothing.
function cut(square) {
  if (square) {
    const { width, height, short } = extent();
    const side = Math.min(1, Math.max(LEAST, square.side / short));
    const [x, y] = [[square.left, width], [square.top, height]].map(([at, whole]) => Math.min(Math.max(0, at / whole), 1 - (side * short) / whole));
    current().crop = { x: Math.max(0, x), y: Math.max(0, y), side };
  } else {
    current().crop = null;
  }
  drawHeat(null);
  place();
  changed();
}

function inPixels({ x, y, side } = current().crop) {
  const { width, height, short } = extent();
  return { left: x * width, top: y * height, side: side * short };
}

function spanned([a, b]) {
  const side = Math.max(Math.abs(a.x - b.x), Math.abs(a.y - b.y));
  return { left: (a.x + b.x - side) / 2, top: (a.y + b.y - side) / 2, side };
}

// From where a mouse is pressed to where it is now.
function drawn(from, to) {
  const side = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y));
  return { left: to.x < from.x ? from.x - side : from.x, top: to.y < from.y ? from.y - side : from.y, side };
}

export function wire() {
  const frame = $("frame");
  let from = null; // where a mouse was pressed or the square gripped: { x, y, square }
  const point = ({ clientX, clientY }) => ({ x: clientX - extent().left, y: clientY - extent().top });
  frame.addEventListener("pointerdown", (event) => {
    const square = event.target === $("square") ? inPixels() : null;
    if (!$("crop").offsetParent || event.button || (event.pointerType === "touch" && !square)) return; // one finger scrolls the page
    from = { ...point(event), square };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    const at = point(event);
    if (from?.square) cut({ ...from.square, left: from.square.left + at.x - from.x, top: from.square.top + at.y - from.y });
    else if (from && Math.hypot(at.x - from.x, at.y - from.y) > 8) cut(drawn(from, at));
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    frame.addEventListener(kind, () => {
      if (from) thumbs();
      from = null;
    });
  }
  frame.addEventListener("touchmove", (event) => { // of two fingers
    if (event.touches.length !== 2 || !$("crop").offsetParent) return;
    if (event.cancelable) event.preventDefault();
    from = null;
    cut(spanned([...event.touches].map(point)));
  }, { passive: false });
  frame.addEventListener("touchend", () => thumbs());
  frame.addEventListener("dragstart", (event) => event.preventDefault());
  $("crop").addEventListener("click", () => {
    const { width, height, short } = extent();
    cut(current().crop ? null : { left: (width - 0.6 * short) / 2, top: (height - 0.6 * short) / 2, side: 0.6 * short });
    thumbs();
  });
  $("square").addEventListener("keydown", (event) => {
    const square = inPixels();
    const step = extent().short / 20;
    const [right, down, more] = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
      "+": [-0.5, -0.5, 1], "-": [0.5, 0.5, -1] }[event.key] ?? [0, 0, 0];
    if (!right && !down) return;
    event.preventDefault();
    cut({ left: square.left + right * step, top: square.top + down * step, side: square.side + more * step });
    thumbs();
  });
  $("heat-switch").addEventListener("click", () => setHeat($("heat").hidden));
}

// ---- heatmap -------------------------------------------------------------------------------------------------------

const [LITTLE, MOST_LOOKED] = [[38, 20, 110, 150], [255, 222, 40, 120]]; // as style.css has them in the legend

// rows: 0 to 1, over the photo or over the square that was cut out of it; null: none.
export function drawHeat(rows, square = null) {
  const canvas = $("heat");
  const [height, width] = [rows?.length ?? 0, rows?.[0]?.length ?? 0];
  setHeat(false);
  $("heat-switch").hidden = !(height && width) || current().bad;
  if (!height || !width) return;
  canvas.width = width;
  canvas.height = height;
  const picture_ = canvas.getContext("2d").createImageData(width, height);
  const values = rows.flat();
  values.forEach((value, i) => {
    // from dark blue to yellow, which differ in light too: readable in any kind of colour sight
    picture_.data.set(LITTLE.map((low, k) => Math.round(low + (MOST_LOOKED[k] - low) * Math.min(1, Math.max(0, value)))), 4 * i);
  });
  canvas.getContext("2d").putImageData(picture_, 0, 0);
  const [x, y] = ((i) => [i % width, Math.floor(i / width)])(values.indexOf(Math.max(...values)));
  const third = (at, whole) => Math.min(2, Math.floor((3 * (at + 0.5)) / whole));
  canvas.setAttribute("aria-label", t("heat_name", { place: t("heat_places").split(", ")[3 * third(y, height) + third(x, width)] }));
  frameAt(canvas, square ?? { x: 0, y: 0 });
}

function setHeat(on) {
  $("heat").hidden = !on;
  $("legend").hidden = !on;
  $("heat-switch").textContent = t(on ? "heat_hide" : "heat_show");
}
