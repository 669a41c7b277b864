// What the keyboard does while the comparison has the focus.

/** For the list that "?" opens. */
export const KEYS = [
  ["W  S  F  D", "wipe, side by side, flicker, difference"],
  [",  .", "move the wipe line"],
  ["Space", "flicker: stop, show the other image"],
  ["R", "flicker: rate; difference: range"],
  ["+  −", "zoom"],
  ["0", "fit"],
  ["1 … 9", "so many screen pixels for one of the image"],
  ["arrows", "pan"],
  ["N  P", "next, previous image of the batch"],
  ["Enter  Esc", "full screen, leave it"],
  ["?", "this list"],
];

const MODE_KEYS = { w: "wipe", s: "side", f: "flicker", d: "difference" };
const PANS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const STEP = 0.1; // of the pane, for a pan
const LINE_STEP = 0.02;

const PLAIN = {
  "+": (act) => act.zoomIn(),
  "=": (act) => act.zoomIn(),
  "-": (act) => act.zoomOut(),
  0: (act) => act.fit(),
  ",": (act) => act.moveLine(-LINE_STEP),
  ".": (act) => act.moveLine(LINE_STEP),
  " ": (act) => act.flip(),
  r: (act) => act.adjust(),
  n: (act) => act.next(),
  p: (act) => act.previous(),
  PageDown: (act) => act.next(),
  PageUp: (act) => act.previous(),
  "?": (act) => act.help(),
};

/** Do what a key stands for; tells whether that did anything. Keys that do nothing here are ComfyUI's. */
export function press(event, act, panel) {
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const onButton = event.target !== panel;
  if (onButton && (key === "Enter" || key === " ")) return false; // they press the button
  return does(key, act) !== false;
}

function does(key, act) {
  if (MODE_KEYS[key]) return act.mode(MODE_KEYS[key]);
  if (PANS[key]) return act.pan(...PANS[key].map((direction) => direction * STEP));
  if (key >= "1" && key <= "9" && key.length === 1) return act.actual(Number(key));
  if (key === "Enter") return act.full();
  if (key === "Escape") return act.escape();
  return PLAIN[key] ? PLAIN[key](act) : false;
}
