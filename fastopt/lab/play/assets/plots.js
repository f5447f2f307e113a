// What Plotly draws: the map, the landscape in space, and the curves. Marbles on the map are drawn by marbles.js.

const MARGIN = { l: 56, r: 10, t: 10, b: 40 }; // of the map; the canvas lies exactly inside
const FONT = { family: 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', size: 12, color: "#1c2733" };
const STILL = { displayModeBar: false, responsive: false, displaylogo: false };
const WITHOUT_WEBGL = "This browser has no WebGL, so the surface is not drawn. The map has the same paths.";
const WEBGL = document.createElement("canvas").getContext("webgl") !== null;
const CUT = 1e-12; // less than that above the least loss is drawn as that

/** Return numbers that the server or the exported file has packed. */
function unpacked(packed) {
  if (packed === null) return null;
  if (typeof packed !== "string") return new Float32Array(packed.count).fill(packed.value);
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

/** Prepare a landscape for drawing: the height of a loss in space, and the colour of each point of the grid. */
function prepared(told) {
  const n = told.points;
  const losses = unpacked(told.losses);
  const top = told.top ?? Infinity;
  const most = Math.min(top, losses.reduce((a, b) => Math.max(a, b)));
  const low = told.least;
  const height = told.logarithmic
    ? (loss) => Math.log10(Math.min(Math.max(loss, low), most) - low + 1e-4 * (most - low))
    : (loss) => Math.min(loss, most);
  const heights = Array.from(losses, height);
  const bottom = height(low);
  const span = height(most) - bottom;
  const shares = heights.map((each) => Math.pow(Math.max(0, (each - bottom) / span), told.power));
  const axis = ([from, to]) => Array.from({ length: n }, (_, i) => from + ((to - from) * i) / (n - 1));
  const land = { ...told, height, bottom, span, heights: rowsOf(heights, n), shares: rowsOf(shares, n), alongX: axis(told.x), alongY: axis(told.y) };
  const thin = (values) => values.filter((_, i) => i % SURFACE === 0);
  land.surface = { x: thin(land.alongX), y: thin(land.alongY), z: thin(land.heights).map(thin), surfacecolor: thin(land.shares).map(thin) };
  return land;
}

const SURFACE = 2; // in space, every second point of the map's grid

function rowsOf(flat, n) {
  return Array.from({ length: n }, (_, row) => flat.slice(row * n, (row + 1) * n));
}

/** Return how much each point of the map is lit from the upper left: 0 is dark, 1 light. */
function lit(heights, span) {
  const n = heights.length;
  const steep = (0.15 * (n - 1)) / span;
  const at = (j, i) => heights[Math.min(n - 1, Math.max(0, j))][Math.min(n - 1, Math.max(0, i))];
  return heights.map((row, j) =>
    row.map((_, i) => {
      const right = (at(j, i + 1) - at(j, i - 1)) * steep;
      const up = (at(j + 1, i) - at(j - 1, i)) * steep;
      return 0.5 + (0.5 * (right - up)) / Math.sqrt(2 * (1 + right * right + up * up));
    })
  );
}

const HEIGHTS = () => PAGE.heights.map((colour, i, all) => [i / (all.length - 1), colour]);

function axisOf(title, more) {
  return { title: { text: title, standoff: 6 }, zeroline: false, fixedrange: true, gridcolor: "#e6ebf0", nticks: 7, ...more };
}

/** Draw the map. */
function drawMap(where, land) {
  const place = { x: land.alongX, y: land.alongY };
  const quiet = { hoverinfo: "skip", showscale: false };
  const lines = { coloring: "none", start: 1 / 14, end: 13 / 14, size: 1 / 14 };
  const traces = [{ type: "heatmap", ...place, z: land.shares, colorscale: HEIGHTS(), zmin: 0, zmax: 1, zsmooth: "fast", ...quiet }];
  if (land.relief) {
    const grey = [[0, "rgba(0,0,0,0.55)"], [0.5, "rgba(128,128,128,0)"], [1, "rgba(255,255,255,0.6)"]];
    traces.push({ type: "heatmap", ...place, z: lit(land.heights, land.span), colorscale: grey, zmin: 0, zmax: 1, zsmooth: "fast", ...quiet });
  }
  traces.push({ type: "contour", ...place, z: land.shares, contours: lines, line: { width: 0.7, color: "rgba(70,80,90,0.55)" }, ...quiet });
  const axes = {
    xaxis: axisOf(land.axes[0], { range: land.x, ticks: "outside", showgrid: false }),
    yaxis: axisOf(land.axes[1], { range: land.y, ticks: "outside", showgrid: false }),
  };
  return Plotly.react(where, traces, { margin: MARGIN, font: FONT, dragmode: false, autosize: true, ...axes }, STILL);
}

/** Draw the landscape in space, with a path and a marble for each, at a step. */
function drawSpace(where, land, marbles, step) {
  const surface = {
    type: "surface", ...land.surface,
    colorscale: HEIGHTS(), cmin: 0, cmax: 1, showscale: false, hoverinfo: "skip",
    lighting: { ambient: 0.65, diffuse: 0.6, specular: 0.08, roughness: 0.9 },
    contours: { z: { show: true, start: land.bottom, end: land.bottom + land.span, size: land.span / 14, color: "rgba(70,80,90,0.35)", width: 1 } },
  };
  const none = { visible: false };
  const scene = {
    xaxis: { ...none, range: land.x }, yaxis: { ...none, range: land.y }, zaxis: none,
    hovermode: false, aspectmode: "manual", aspectratio: { x: 1.2, y: 1.2, z: 0.72 },
    camera: cameraOf(land),
  };
  const layout = { margin: { l: 0, r: 0, t: 0, b: 0 }, font: FONT, scene, showlegend: false, uirevision: land.note, autosize: true };
  return Plotly.react(where, [surface, ...marbles.flatMap((each) => inSpace(land, each, step))], layout, STILL);
}

/** Look from the landscape's own side, at the middle of its ground, which may be high above a pit. */
function cameraOf(land) {
  const angle = (land.view * Math.PI) / 180;
  const ground = land.heights.flat().reduce((sum, each) => sum + each, 0) / land.points ** 2;
  const middle = 0.4 * ((ground - land.bottom) / land.span - 0.5);
  return { eye: { x: 1.45 * Math.cos(angle), y: 1.45 * Math.sin(angle), z: 1.1 + middle }, center: { x: 0, y: 0, z: middle } };
}

/** Return the path of a marble in space, as far as it is over the map, and the marble; a little above the ground. */
function inSpace(land, marble, now) {
  const over = { x: [], y: [], z: [] };
  for (let step = 0; step <= marble.steps; step += 1) {
    const at = spotOf(land, marble, step);
    for (const axis of ["x", "y", "z"]) over[axis].push(at[axis]);
  }
  const line = { type: "scatter3d", mode: "lines", ...over, line: { color: marble.colour, width: 5 }, hoverinfo: "skip", connectgaps: false };
  const ball = { type: "scatter3d", mode: "markers", marker: { color: marble.colour, size: 6, line: { color: "#fff", width: 1 } }, hoverinfo: "skip" };
  return [line, { ...ball, ...ballAt(land, marble, now) }];
}

function spotOf(land, marble, step) {
  const [x, y] = [marble.points[2 * step], marble.points[2 * step + 1]];
  const inside = x >= land.x[0] && x <= land.x[1] && y >= land.y[0] && y <= land.y[1];
  return inside ? { x, y, z: land.height(marble.losses[step]) + 0.02 * land.span } : { x: null, y: null, z: null };
}

function ballAt(land, marble, step) {
  const at = spotOf(land, marble, Math.min(step, marble.steps));
  return { x: [at.x], y: [at.y], z: [at.z] };
}

/** Move the marbles in space. */
function moveInSpace(where, land, marbles, step) {
  const at = marbles.map((each) => ballAt(land, each, step));
  const traces = marbles.map((_, i) => 2 + 2 * i);
  return Plotly.restyle(where, { x: at.map((each) => each.x), y: at.map((each) => each.y), z: at.map((each) => each.z) }, traces);
}

const LOGARITHMIC = { type: "log", tickfont: { size: 10 } };
const CURVES = { l: 52, r: 12, t: 4, b: 30 };

function drawCurves(where, traces, steps, more) {
  const layout = {
    margin: CURVES, font: { ...FONT, size: 11 }, showlegend: false, autosize: true, dragmode: false, paper_bgcolor: "rgba(0,0,0,0)",
    xaxis: axisOf("", { range: [0, steps], nticks: 6 }), yaxis: axisOf("", { nticks: 5, exponentformat: "power", ...more.yaxis }),
    ...(more.yaxis2 ? { yaxis2: axisOf("", { overlaying: "y", side: "right", showgrid: false, nticks: 4, ...more.yaxis2 }) } : {}),
  };
  if (more.yaxis2) layout.margin = { ...CURVES, r: 40 };
  return Plotly.react(where, traces, layout, STILL);
}

function curveOf(values, colour, more = {}) {
  return { type: "scatter", mode: "lines", x: Array.from(values, (_, i) => i), y: Array.from(values), line: { color: colour, width: 1.8, ...more.line }, hoverinfo: "skip", ...more.trace };
}

/** Draw the loss by step of all marbles; on a logarithmic axis what it is above the least loss of the landscape. */
function drawLosses(where, marbles, steps, logarithmic) {
  const shown = (marble) => (logarithmic ? marble.above.map((loss) => Math.max(loss, CUT)) : marble.losses);
  const traces = marbles.map((each) => curveOf(shown(each), each.colour));
  return drawCurves(where, traces, steps, { yaxis: logarithmic ? LOGARITHMIC : {} });
}

/** Return an axis from 0, whose label stays clear of the other axis. */
function rangeOf(most) {
  return { range: [-0.06 * most, most] };
}

/** Draw rates, and on the right momenta, dotted. */
function drawSchedules(where, marbles, steps) {
  const staircase = { shape: "hv" };
  const rates = marbles.map((each) => curveOf(each.lr, each.colour, { line: staircase }));
  const carried = marbles.filter((each) => each.momentum !== null);
  const momenta = carried.map((each) => curveOf(each.momentum, each.colour, { line: { ...staircase, dash: "dot" }, trace: { yaxis: "y2" } }));
  const highest = (name, among) => Math.max(...among.map((each) => each[name].reduce((a, b) => Math.max(a, b), 0))) || 1;
  const yaxis = rangeOf(1.3 * highest("lr", marbles)); // so that it does not lie on a constant momentum
  const yaxis2 = { ...rangeOf(1.05 * highest("momentum", carried)), tickmode: "auto" };
  return drawCurves(where, [...rates, ...momenta], steps, { yaxis, ...(momenta.length ? { yaxis2 } : {}) });
}

/** Draw the effective rates of both coordinates, for marbles of adaptive rules; the second one dashed. */
function drawRates(where, marbles, steps) {
  const along = (rates, axis) => rates.filter((_, i) => i % 2 === axis);
  const traces = marbles.flatMap((each) => [
    curveOf(along(each.rates, 0), each.colour),
    curveOf(along(each.rates, 1), each.colour, { line: { dash: "dash" } }),
  ]);
  return drawCurves(where, traces, steps, { yaxis: LOGARITHMIC });
}
