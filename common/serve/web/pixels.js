// From a photo's bytes to the model's pixels, value for value as common/images.py makes them with Pillow and OpenCV.
//
// A picture is { data: Uint8Array of RGB, width, height }. Integer sums stand for Pillow's fixed point, Math.fround for OpenCV's floats.
// One thing cannot be repeated here: libjpeg's decoding at 1/2, 1/4 or 1/8, for which means over such boxes stand. It only concerns JPEGs
// of more than 3.5 times the long side.

const LEFT_OVER = 1.75; // as in images.py: what a cheap first shrink leaves to the exact one
const STRIP = 1 << 20; // pixels read back at once: a 12-megapixel canvas would be too large for some phones

const context = (width, height) => new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
const even = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // halves to the even side, as Python and OpenCV do

// Whether a canvas gives back the pixels that were put into it: some browsers blur them against fingerprinting.
export async function canRead() {
  const wanted = new ImageData(16, 16);
  wanted.data.forEach((_, i) => { wanted.data[i] = i % 4 === 3 ? 255 : (37 * i + (i >> 5) * 11) & 255; });
  const bitmap = await createImageBitmap(wanted, { colorSpaceConversion: "none" });
  const pen = context(16, 16);
  pen.drawImage(bitmap, 0, 0);
  return pen.getImageData(0, 0, 16, 16).data.every((value, i) => value === wanted.data[i]);
}

// Decode a blob, upright, take out the square `crop` (shares of width, height and short side; null: all of it), and shrink that to at
// most `longSide` (null: never). Throws where this browser cannot decode it.
// Colours are converted from the photo's profile to sRGB, as the server does: a canvas is sRGB, and that is the browsers' default.
export async function read(blob, longSide, crop = null) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", premultiplyAlpha: "none" });
  try {
    const head = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
    let part = { bitmap, left: 0, top: 0, width: bitmap.width, height: bitmap.height };
    if (crop) {
      const side = Math.max(1, Math.round(crop.side * Math.min(bitmap.width, bitmap.height)));
      const [left, top] = [[crop.x, bitmap.width], [crop.y, bitmap.height]].map(([share, whole]) => Math.min(Math.round(share * whole), whole - side));
      part = { bitmap, left, top, width: side, height: side };
    }
    const { width, height } = part;
    return { ...shrink(part, longSide, !crop && head[0] === 0xff && head[1] === 0xd8), width, height };
  } finally {
    bitmap.close();
  }
}

function shrink(part, longSide, jpeg) {
  const size = [part.width, part.height];
  const most = Math.max(...size);
  if (longSide === null || most <= longSide) return { rgb: readBack(part, [1, 1]) };
  const target = size.map((side) => Math.max(1, even((side * longSide) / most)));
  let draft = jpeg ? 8 : 1;
  while (draft > 1 && (most < draft * LEFT_OVER * longSide || Math.min(...size) < draft)) draft /= 2;
  let extent = size.map((side) => side / draft);
  const boxes = extent.map((side, i) => Math.max(1, Math.floor(side / (LEFT_OVER * target[i]))));
  const means = draft > 1 || Math.max(...boxes) > 1;
  // libjpeg's boxes and Pillow's are taken at once where only one of them is more than a pixel
  let rgb = readBack(part, draft > 1 ? [draft, draft] : boxes);
  if (draft > 1 && Math.max(...boxes) > 1) rgb = reduce(rgb, boxes);
  extent = extent.map((side, i) => side / boxes[i]);
  const ratios = extent.map((side, i) => side / target[i]);
  if (means && ratios.every((ratio) => ratio >= LEFT_OVER && ratio < 2.05)) return { rgb: linear(blur(rgb), ratios, target) };
  return { rgb: area(rgb, ratios, target) };
}

// The pixels of a part of a bitmap over white, each box of them as its mean.
function readBack({ bitmap, left, top, width, height }, [across, down]) {
  const wide = Math.ceil(width / across);
  const out = new Uint8Array(3 * wide * Math.ceil(height / down));
  const rows = Math.min(height, down * Math.max(1, Math.floor(STRIP / width / down)));
  const pen = context(width, rows);
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#fff";
  for (let y = 0; y < height; y += rows) {
    const high = Math.min(rows, height - y);
    pen.fillRect(0, 0, width, high);
    pen.drawImage(bitmap, left, top + y, width, high, 0, 0, width, high);
    means(pen.getImageData(0, 0, width, high).data, 4, width, high, across, down, out, 3 * wide * (y / down));
  }
  return { data: out, width: wide, height: Math.ceil(height / down) };
}

function reduce({ data, width, height }, [across, down]) {
  const [w, h] = [Math.ceil(width / across), Math.ceil(height / down)];
  const out = new Uint8Array(3 * w * h);
  means(data, 3, width, height, across, down, out, 0);
  return { data: out, width: w, height: h };
}

// Pillow's Reduce.c: the sum and half the count, times the count's inverse in 24 bits. Boxes at the far edges may be smaller.
function means(data, step, width, height, across, down, out, at) {
  for (let top = 0; top < height; top += down) {
    const high = Math.min(down, height - top);
    for (let left = 0; left < width; left += across) {
      const wide = Math.min(across, width - left);
      const count = wide * high;
      let [r, g, b] = [count >> 1, count >> 1, count >> 1];
      for (let y = 0; y < high; y += 1) {
        let i = step * ((top + y) * width + left);
        for (let x = 0; x < wide; x += 1, i += step) {
          r += data[i];
          g += data[i + 1];
          b += data[i + 2];
        }
      }
      const inverse = Math.floor(16777216 / count);
      out[at] = (r * inverse) >>> 24;
      out[at + 1] = (g * inverse) >>> 24;
      out[at + 2] = (b * inverse) >>> 24;
      at += 3;
    }
  }
}

// OpenCV's GaussianBlur of 3 x 3 and sigma 0.46, which it computes in 8 bits after the point.
function blur({ data, width, height }) {
  const row = 3 * width;
  const across = new Uint16Array(data.length);
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < row; x += 1, i += 1) {
      across[i] = 20 * (data[x < 3 ? i : i - 3] + data[x >= row - 3 ? i : i + 3]) + 216 * data[i];
    }
  }
  const out = new Uint8Array(data.length);
  for (let i = 0; i < out.length; i += 1) {
    out[i] = (20 * (across[i < row ? i : i - row] + across[i >= out.length - row ? i : i + row]) + 216 * across[i] + 32768) >>> 16;
  }
  return { data: out, width, height };
}

// OpenCV's INTER_LINEAR: weights of 11 bits.
function linear({ data, width, height }, ratios, target) {
  const [columns, rows] = [[width, target[0], ratios[0]], [height, target[1], ratios[1]]].map(([from, to, ratio]) =>
    Array.from({ length: to }, (_, i) => {
      const place = Math.fround((i + 0.5) * ratio - 0.5);
      let first = Math.floor(place);
      let rest = Math.fround(place - first);
      if (first < 0) [first, rest] = [0, 0];
      if (first >= from - 1) [first, rest] = [from - 1, 0];
      return [first, Math.min(first + 1, from - 1), even((1 - rest) * 2048), even(rest * 2048)];
    }));
  const out = new Uint8Array(3 * target[0] * target[1]);
  let at = 0;
  for (const [above, below, u, v] of rows) {
    for (const [left, right, s, t] of columns) {
      const [a, b, c, d] = [above * width + left, above * width + right, below * width + left, below * width + right].map((i) => 3 * i);
      for (let k = 0; k < 3; k += 1, at += 1) {
        const high = (data[a + k] * s + data[b + k] * t) >> 4;
        const low = (data[c + k] * s + data[d + k] * t) >> 4;
        out[at] = (((u * high) >> 16) + ((v * low) >> 16) + 2) >> 2;
      }
    }
  }
  return { data: out, width: target[0], height: target[1] };
}

// OpenCV's INTER_AREA: sums in 32-bit floats, first along rows, then down.
function area({ data, width, height }, ratios, target) {
  const halves = ratios[0] === 2 && ratios[1] === 2; // OpenCV has a way of its own for this one
  const parts = (from, to, ratio) => Array.from({ length: to }, (_, i) => {
    const [start, stop] = [i * ratio, (i + 1) * ratio];
    const cell = Math.min(ratio, from - start);
    const last = Math.min(Math.floor(i * ratio + ratio), from - 1);
    const first = Math.min(Math.ceil(start), last);
    const found = [];
    if (first - start > 1e-3) found.push([first - 1, Math.fround((first - start) / cell)]);
    for (let at = first; at < last; at += 1) found.push([at, Math.fround(1 / cell)]);
    if (stop - last > 1e-3) found.push([last, Math.fround(Math.min(stop - last, 1, cell) / cell)]);
    return found;
  });
  const columns = parts(width, target[0], ratios[0]);
  const row = 3 * target[0];
  const out = new Uint8Array(row * target[1]);
  const [line, sum] = [new Float32Array(row), new Float32Array(row)];
  parts(height, target[1], ratios[1]).forEach((cells, y) => {
    sum.fill(0);
    for (const [from, share] of cells) {
      line.fill(0);
      columns.forEach((taken, x) => {
        for (const [place, weight] of taken) {
          const i = 3 * (from * width + place);
          for (let k = 0; k < 3; k += 1) line[3 * x + k] += Math.fround(data[i + k] * weight);
        }
      });
      for (let i = 0; i < row; i += 1) sum[i] += Math.fround(line[i] * share);
    }
    for (let i = 0; i < row; i += 1) out[y * row + i] = halves ? Math.floor(sum[i] + 0.5) : Math.min(255, even(sum[i]));
  });
  return { data: out, width: target[0], height: target[1] };
}

// Pillow's BILINEAR with antialiasing to a square: a triangle as wide as the shrink, 22 bits after the point, rounded in between.
// tallFirst: from Pillow 13 on the height is done first where it loses more than twice as many pixels as the width.
export function resize({ data, width, height }, size, tallFirst) {
  const across = (from, lines) => pass(from, lines, width, size, 3, 3 * width, 3, 3 * size);
  const down = (from, row) => pass(from, row, height, size, 3 * row, 3, 3 * row, 3);
  if (tallFirst && height > size && height - size > 2 * (width - size)) data = across(down(data, width), size);
  else data = down(across(data, height), size);
  return { data, width: size, height: size };
}

function pass(data, lines, from, to, stepIn, lineIn, stepOut, lineOut) {
  const out = new Uint8Array(3 * lines * to);
  const scale = from / to;
  const support = Math.max(scale, 1);
  for (let i = 0; i < to; i += 1) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const shares = Array.from({ length: last - first }, (_, k) => Math.max(0, 1 - Math.abs((k + first - center + 0.5) * (1 / support))));
    const whole = shares.reduce((a, b) => a + b, 0);
    const weights = Int32Array.from(shares, (share) => Math.trunc(0.5 + (share / whole) * 4194304));
    for (let line = 0; line < lines; line += 1) {
      for (let k = 0; k < 3; k += 1) {
        let sum = 2097152;
        for (let j = 0, at = first * stepIn + line * lineIn + k; j < weights.length; j += 1, at += stepIn) sum += data[at] * weights[j];
        out[i * stepOut + line * lineOut + k] = Math.min(255, sum >> 22);
      }
    }
  }
  return out;
}

// Light and focus at model size, as photo_quality in common/images.py measures them.
export function quality({ data, width, height }) {
  const grey = Float64Array.from({ length: width * height }, (_, i) =>
    (9798 * data[3 * i] + 19235 * data[3 * i + 1] + 3735 * data[3 * i + 2] + 16384) >> 15);
  const fold = (i, n) => (i < 0 ? Math.min(1, n - 1) : i >= n ? Math.max(0, n - 2) : i);
  const edges = grey.map((value, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    return grey[y * width + fold(x - 1, width)] + grey[y * width + fold(x + 1, width)]
      + grey[fold(y - 1, height) * width + x] + grey[fold(y + 1, height) * width + x] - 4 * value;
  });
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const variance = (values, m = mean(values)) => values.reduce((a, b) => a + (b - m) ** 2, 0) / values.length;
  return { brightness: mean(grey) / 255, sharpness: variance(edges) / (variance(grey) + 1) };
}

// A PNG of exactly these pixels: nothing of the photo's metadata is in it.
export async function png({ data, width, height }) {
  const picture = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) picture.data.set([data[3 * i], data[3 * i + 1], data[3 * i + 2], 255], 4 * i);
  const pen = context(width, height);
  pen.putImageData(picture, 0, 0);
  return pen.canvas.convertToBlob({ type: "image/png" });
}
