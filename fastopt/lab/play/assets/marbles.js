// Marbles on the map: paths, the best point so far, and the arrows, on a canvas over Plotly's map.

const ARROWS = { step: "#000000", velocity: "#117733", pull: "#E69F00" }; // the last one is drawn on top
const LONG = 0.3; // the share of the map as long as which long steps are drawn

/** Read what fastopt tells of a marble, and prepare it for drawing. */
function marbleTold(told, colour, land) {
  const marble = { ...told, colour };
  for (const name of ["points", "above", "pulls", "lr", "momentum", "rates"]) marble[name] = unpacked(told[name]);
  marble.losses = marble.above.map((each) => each + land.least);
  marble.steps = marble.losses.length - 1;
  marble.best = new Int32Array(marble.steps + 1);
  for (let step = 1; step <= marble.steps; step += 1) {
    const before = marble.best[step - 1];
    marble.best[step] = marble.above[step] < marble.above[before] ? step : before;
  }
  return marble;
}

/** Return where a marble is at a step, which may lie between two. */
function pointAt(marble, step) {
  const at = Math.min(step, marble.steps);
  const before = Math.floor(at);
  const after = Math.min(before + 1, marble.steps);
  const share = at - before;
  return [0, 1].map((axis) => (1 - share) * marble.points[2 * before + axis] + share * marble.points[2 * after + axis]);
}

/** Return pull, velocity and step that a marble takes from here. */
function arrowsAt(marble, step) {
  const at = [0, 1].map((axis) => marble.points[2 * step + axis]);
  const moved = at.map((here, axis) => marble.points[2 * step + 2 + axis] - here);
  const pull = [0, 1].map((axis) => marble.pulls[2 * step + axis]);
  return { at, pull, velocity: moved.map((each, axis) => each - pull[axis]), step: moved };
}

/** Return how much arrows are magnified, the same along a path: 1, 2, 5, 10, ... times. */
function magnification(land, marble) {
  const width = land.x[1] - land.x[0];
  const lengths = [];
  for (let step = 0; step < marble.steps; step += 1) lengths.push(Math.hypot(...arrowsAt(marble, step).step) / width);
  const usual = lengths.sort((a, b) => a - b)[Math.floor(0.97 * lengths.length)] || 1;
  const wanted = Math.max(1, Math.min(1e6, LONG / usual));
  const power = 10 ** Math.floor(Math.log10(wanted));
  return power * (wanted / power >= 5 ? 5 : wanted / power >= 2 ? 2 : 1);
}

/** Draw all marbles at a step; `stepping` says whether the chosen one carries its arrows. */
function drawMarbles(canvas, land, marbles, chosen, step, stepping) {
  const pixels = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * pixels;
  canvas.height = height * pixels;
  const pen = canvas.getContext("2d");
  pen.scale(pixels, pixels);
  const place = ([x, y]) => [
    ((x - land.x[0]) / (land.x[1] - land.x[0])) * width,
    (1 - (y - land.y[0]) / (land.y[1] - land.y[0])) * height,
  ];
  const order = [...marbles.keys()].sort((a, b) => (a === chosen) - (b === chosen)); // the chosen one on top
  for (const i of order) drawPath(pen, place, marbles[i], step);
  drawRing(pen, place(pointAt(marbles[0], 0)));
  const best = marbles[chosen].best[Math.min(Math.floor(step), marbles[chosen].steps)];
  drawStar(pen, place(pointAt(marbles[chosen], best)), marbles[chosen].colour);
  if (stepping && step < marbles[chosen].steps) {
    drawArrows(pen, place, arrowsAt(marbles[chosen], Math.floor(step)), magnification(land, marbles[chosen]));
  }
  for (const i of order) drawBall(pen, place(pointAt(marbles[i], step)), marbles[i].colour, i + 1);
}

function drawPath(pen, place, marble, step) {
  const until = Math.min(Math.floor(step), marble.steps);
  pen.lineJoin = "round";
  trace(pen, place, marble, until, marble.steps);
  pen.globalAlpha = 0.25;
  stroke(pen, marble.colour, 1.5);
  pen.globalAlpha = 1;
  trace(pen, place, marble, 0, until);
  pen.lineTo(...place(pointAt(marble, step)));
  stroke(pen, "rgba(255,255,255,0.85)", 4);
  stroke(pen, marble.colour, 2);
}

function trace(pen, place, marble, from, to) {
  pen.beginPath();
  pen.moveTo(...place(pointAt(marble, from)));
  for (let step = from + 1; step <= to; step += 1) pen.lineTo(...place(pointAt(marble, step)));
}

function stroke(pen, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
}

function drawRing(pen, [x, y]) {
  pen.beginPath();
  pen.arc(x, y, 6, 0, 2 * Math.PI);
  pen.fillStyle = "#fff";
  pen.fill();
  stroke(pen, "#000", 1.5);
}

function drawBall(pen, [x, y], colour, number) {
  pen.beginPath();
  pen.arc(x, y, 8, 0, 2 * Math.PI);
  pen.fillStyle = colour;
  pen.fill();
  stroke(pen, "#fff", 1.5);
  pen.fillStyle = "#fff";
  pen.font = "bold 10px sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(number, x, y + 0.5);
}

function drawStar(pen, [x, y], colour) {
  pen.beginPath();
  for (let point = 0; point < 10; point += 1) {
    const [angle, radius] = [-Math.PI / 2 + (point * Math.PI) / 5, point % 2 ? 4 : 9];
    pen.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  pen.closePath();
  pen.fillStyle = "#fff";
  pen.fill();
  stroke(pen, colour, 1.8);
}

/** Draw the three arrows as a parallelogram: the step is its diagonal. */
function drawArrows(pen, place, arrows, times) {
  const end = (arrow) => place(arrows.at.map((here, axis) => here + times * arrow[axis]));
  const [from, corner] = [place(arrows.at), end(arrows.step)];
  pen.setLineDash([3, 3]);
  for (const name of ["pull", "velocity"]) {
    pen.beginPath();
    pen.moveTo(...end(arrows[name]));
    pen.lineTo(...corner);
    stroke(pen, ARROWS[name], 1.2);
  }
  pen.setLineDash([]);
  for (const [name, colour] of Object.entries(ARROWS)) drawArrow(pen, from, end(arrows[name]), colour, name === "step" ? 4.5 : 2.6);
}

function drawArrow(pen, [x, y], [toX, toY], colour, width) {
  const length = Math.hypot(toX - x, toY - y);
  if (length < 1) return;
  const head = Math.min(8 + width, length);
  const angle = Math.atan2(toY - y, toX - x);
  const back = [toX - 0.8 * head * Math.cos(angle), toY - 0.8 * head * Math.sin(angle)];
  for (const [ink, wide] of [["rgba(255,255,255,0.9)", 3], [colour, 0]]) {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(...back);
    stroke(pen, ink, width + wide);
    pen.beginPath();
    for (const turn of [0, 2.65, -2.65]) {
      const reach = turn ? head : 0;
      pen.lineTo(toX + reach * Math.cos(angle + turn), toY + reach * Math.sin(angle + turn));
    }
    pen.closePath();
    if (wide) stroke(pen, ink, wide);
    pen.fillStyle = ink;
    pen.fill();
  }
}
