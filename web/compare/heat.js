// The difference of two pictures as colours: the largest of the three channels, from 0 to a range in grey levels.
import { drawStretched } from "./draw.js";

const STOPS = [
  [10, 10, 18],
  [66, 24, 110],
  [176, 48, 92],
  [240, 128, 48],
  [252, 246, 186],
];
const MOST_PIXELS = 1_200_000; // compared at once; above, the map is coarser than the screen

export const RANGES = [64, 16, 255];
export const GRADIENT = `linear-gradient(to right, ${STOPS.map((stop) => `rgb(${stop})`).join(", ")})`;

function colourOf(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const start = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[start].map((from, channel) => Math.round(from + (STOPS[start + 1][channel] - from) * (place - start)));
}

function colours(range) {
  const table = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(table.buffer);
  for (let level = 0; level < 256; level += 1) bytes.set([...colourOf(level / range), 255], 4 * level);
  return table;
}

/** Keeps its canvases from frame to frame. */
export class HeatMap {
  constructor() {
    this.sides = [0, 1].map(() => document.createElement("canvas"));
    this.contexts = this.sides.map((side) => side.getContext("2d", { willReadFrequently: true }));
  }

  /** Draw the map of what `view` shows into `context` with the pane's corner at `area`. */
  draw(context, pictures, view, area, range) {
    const { left, top, right, bottom } = view.seen;
    // Above one to one, no more than the picture's own pixels need comparing.
    const from = { x: Math.floor(left), y: Math.floor(top) };
    const size = { x: Math.ceil(right) - from.x, y: Math.ceil(bottom) - from.y };
    if (size.x < 1 || size.y < 1) return;
    const scale = Math.min(view.zoom, 1, Math.sqrt(MOST_PIXELS / (size.x * size.y)));
    const [width, height] = [Math.max(1, Math.round(size.x * scale)), Math.max(1, Math.round(size.y * scale))];
    const [before, after] = this.contexts.map((side, number) => {
      Object.assign(this.sides[number], { width, height });
      side.imageSmoothingQuality = "high";
      const place = { x: -from.x, y: -from.y, scaleX: width / size.x, scaleY: height / size.y };
      drawStretched(side, pictures[number], view.picture, { left, top, right, bottom }, place);
      return side.getImageData(0, 0, width, height);
    });
    this.contexts[0].putImageData(differences(before, after, range), 0, 0);
    const at = view.toPane(from);
    context.imageSmoothingEnabled = view.zoom <= 1;
    context.drawImage(this.sides[0], area.left + at.x, area.top + at.y, size.x * view.zoom, size.y * view.zoom);
  }
}

/** Colour how far two ImageData lie apart; the first one's pixels are replaced. */
function differences(before, after, range) {
  const [one, other] = [before.data, after.data];
  const coloured = new Uint32Array(one.buffer);
  const table = colours(range);
  for (let pixel = 0, at = 0; pixel < coloured.length; pixel += 1, at += 4) {
    const red = Math.abs(one[at] - other[at]);
    const green = Math.abs(one[at + 1] - other[at + 1]);
    const blue = Math.abs(one[at + 2] - other[at + 2]);
    coloured[pixel] = table[Math.max(red, green, blue)];
  }
  return before;
}
