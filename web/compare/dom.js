// Small helpers for elements. Text is always set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  enter: "M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4",
  leave: "M6 2v4H2M14 6h-4V2M10 14v-4h4M2 10h4v4",
  previous: "M10 3 5 8l5 5",
  next: "M6 3l5 5-5 5",
};

/** Make an element of `tag` with classes, attributes and children; `text` is plain text. */
export function make(tag, { className = "", text, children = [], ...attributes } = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 16 16");
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  picture.append(path);
  return picture;
}

/** Make a button; `hint` is what the tooltip adds to its name, mostly its key. */
export function button(name, hint, { text, shape, className = "" }, act) {
  const title = hint ? `${name} (${hint})` : name;
  const names = { type: "button", "aria-label": name, title };
  const made = make("button", { className: `eam-compare-button ${className}`, ...names });
  if (shape) made.append(icon(shape));
  else made.textContent = text ?? name;
  made.addEventListener("click", act);
  return made;
}

/** Set text only where it changed, so that screen readers hear no repeats. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Load the style sheet beside this file once. */
export function addStyle() {
  const address = new URL("./compare.css", import.meta.url).href;
  if ([...document.styleSheets].some((sheet) => sheet.href === address)) return;
  if (document.querySelector(`link[href="${address}"]`)) return;
  document.head.append(make("link", { rel: "stylesheet", href: address }));
}
