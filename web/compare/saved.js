// What a node keeps of its last run in its properties, so that a saved workflow shows it again.

export const RUN = "eam_compare";
export const MODE = "eam_compare_mode";

const isText = (value) => typeof value === "string";
const isSize = (value) => Array.isArray(value) && value.length === 2 && value.every((side) => side > 0);
const isIndex = (value, list) => Number.isInteger(value) && value >= 0 && value < list.length;

function references(list) {
  if (!Array.isArray(list) || !list.length) return null;
  const plain = list.map(({ filename, subfolder = "", type = "temp" } = {}) => ({ filename, subfolder, type }));
  return plain.every((one) => Object.values(one).every(isText) && one.filename) ? plain : null;
}

function isPair(pair, a, b) {
  if (!pair || !isIndex(pair.a, a) || !isIndex(pair.b, b)) return false;
  const named = Array.isArray(pair.labels) && pair.labels.length === 2 && pair.labels.every(isText);
  return named && isSize(pair.a_size) && isSize(pair.b_size) && (pair.note === undefined || isText(pair.note));
}

/** Read a run from what the server sent or a workflow kept; null if it is none, as in older workflows. */
function readRun(a, b, pairs) {
  const [before, after] = [references(a), references(b)];
  if (!before || !after || !Array.isArray(pairs) || !pairs.length) return null;
  return pairs.every((pair) => isPair(pair, before, after)) ? { a: before, b: after, pairs } : null;
}

export const fromOutput = (output) => readRun(output?.a_images, output?.b_images, output?.eam_compare);

export function fromProperties(properties) {
  const kept = properties?.[RUN];
  return kept ? readRun(kept.a, kept.b, kept.pairs) : null;
}
