// One species' disease head, from its record in heads.bin (common/export/browser/heads_file.py says what stands where).

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let c = 0xffffffff;
  for (const byte of bytes) c = TABLE[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

// buffer: ArrayBuffer of one record; stamp: eight hex digits, the beginning of the model's hash; count: how many diseases it should have.
export function unpack(buffer, stamp, count) {
  const view = new DataView(buffer);
  if (buffer.byteLength < 16 || crc32(new Uint8Array(buffer, 4)) !== view.getUint32(0, true)) throw new Error("a head is damaged");
  const found = [4, 5, 6, 7].map((at) => view.getUint8(at).toString(16).padStart(2, "0")).join("");
  const [diseases, width] = [view.getUint16(8, true), view.getUint16(10, true)];
  if (found !== stamp || diseases !== count) throw new Error("a head belongs to another model");
  const rows = diseases + 1;
  const float = (at) => view.getFloat32(16 + 4 * at, true);
  const small = new Int8Array(buffer, 16 + 8 * rows, rows * width);
  const row = (i) => Float32Array.from(small.subarray(i * width, (i + 1) * width), (value) => value * float(i));
  const names = new TextDecoder().decode(new Uint8Array(buffer, 16 + 8 * rows + rows * width)).replace(/\0+$/, "").split("\n");
  return {
    names, temperature: view.getFloat32(12, true), speciesRow: row(0),
    rows: Array.from({ length: diseases }, (_, i) => row(i + 1)), bias: Array.from({ length: diseases }, (_, i) => float(rows + i + 1)),
  };
}

// P(disease given the species) of one picture's feature.
export function diseases(head, feature) {
  if (head.rows.length === 1) return [1];
  const logits = head.rows.map((row, i) => (row.reduce((sum, weight, k) => sum + weight * feature[k], head.bias[i])) / head.temperature);
  const most = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - most));
  const whole = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / whole);
}
