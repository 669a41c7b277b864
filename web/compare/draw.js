// Draws a pair of pictures in the four modes; only what is visible, at the screen's own resolution.

export const MODES = ["wipe", "side", "flicker", "difference"];
const MARGIN = 4; // pixels drawn beyond the visible part, so that smoothing knows its neighbours

/**
 * Draw the part `seen` of a picture that is stretched to the size `frame`.
 * `place`: x, y are added in pixels of the frame, then scaleX and scaleY applied.
 */
export function drawStretched(context, picture, frame, seen, place) {
  const [wide, high] = [picture.width / frame.width, picture.height / frame.height];
  const left = Math.max(0, Math.floor(seen.left * wide) - MARGIN);
  const top = Math.max(0, Math.floor(seen.top * high) - MARGIN);
  const right = Math.min(picture.width, Math.ceil(seen.right * wide) + MARGIN);
  const bottom = Math.min(picture.height, Math.ceil(seen.bottom * high) + MARGIN);
  if (right <= left || bottom <= top) return;
  const source = picture.at(Math.max(place.scaleX / wide, place.scaleY / high));
  const [reducedX, reducedY] = [source.width / picture.width, source.height / picture.height];
  context.drawImage(
    source,
    left * reducedX,
    top * reducedY,
    (right - left) * reducedX,
    (bottom - top) * reducedY,
    (left / wide + place.x) * place.scaleX,
    (top / high + place.y) * place.scaleY,
    ((right - left) / wide) * place.scaleX,
    ((bottom - top) / high) * place.scaleY,
  );
}

/** Draw a picture into a pane at `area`, inside `clip` alone. Above one to one its pixels stay hard squares. */
function drawPicture(context, picture, view, area, clip = area) {
  const { origin, zoom } = view;
  context.save();
  context.beginPath();
  context.rect(clip.left, clip.top, clip.width, clip.height);
  context.clip();
  context.translate(area.left + origin.x, area.top + origin.y);
  context.imageSmoothingEnabled = zoom <= 1;
  context.imageSmoothingQuality = "high";
  drawStretched(context, picture, view.picture, view.seen, { x: 0, y: 0, scaleX: zoom, scaleY: zoom });
  context.restore();
}

/** The panes of a mode on a canvas: one, or two beside or above each other, whichever shows more. */
export function panes(mode, canvas, picture, density) {
  const { width, height } = canvas;
  if (mode !== "side") return [{ left: 0, top: 0, width, height }];
  const gap = Math.max(2, Math.round(2 * density));
  const half = { width: Math.floor((width - gap) / 2), height: Math.floor((height - gap) / 2) };
  const beside = Math.min(half.width / picture.width, height / picture.height);
  const above = Math.min(width / picture.width, half.height / picture.height);
  if (beside >= above) return [0, half.width + gap].map((left) => ({ left, top: 0, width: half.width, height }));
  return [0, half.height + gap].map((top) => ({ left: 0, top, width, height: half.height }));
}

function drawLine(context, at, height, density) {
  const width = Math.max(1, Math.round(density));
  context.fillStyle = "rgba(0, 0, 0, 0.55)";
  context.fillRect(at - 2 * width, 0, 4 * width, height);
  context.fillStyle = "#fff";
  context.fillRect(at - width, 0, 2 * width, height);
}

/** Mark the point under the pointer on the other side. */
function drawMark(context, area, point, density) {
  context.save();
  context.beginPath();
  context.rect(area.left, area.top, area.width, area.height);
  context.clip();
  for (const [colour, width] of [["rgba(0, 0, 0, 0.6)", 3], ["#fff", 1.25]]) {
    context.beginPath();
    context.arc(area.left + point.x, area.top + point.y, 6 * density, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = width * density;
    context.stroke();
  }
  context.restore();
}

/** Draw one frame. `scene`: canvas, mode, pictures, view, areas, wipe, flipped, range, pointer, density, heat. */
export function draw(scene) {
  const { canvas, mode, pictures, view, areas, density } = scene;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const [before, after] = pictures;
  const [area] = areas;
  if (mode === "wipe") {
    const line = Math.round(scene.wipe * area.width);
    drawPicture(context, before, view, area, { ...area, width: line });
    drawPicture(context, after, view, area, { ...area, left: line, width: area.width - line });
    drawLine(context, line, canvas.height, density);
  } else if (mode === "side") {
    areas.forEach((side, number) => drawPicture(context, pictures[number], view, side));
    const { pointer } = scene;
    if (pointer) drawMark(context, areas[1 - pointer.pane], pointer, density);
  } else if (mode === "flicker") {
    drawPicture(context, scene.flipped ? after : before, view, area);
  } else {
    scene.heat.draw(context, pictures, view, area, scene.range);
  }
}
