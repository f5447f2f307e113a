// The page: what it is set to, what it shows, and what happens when somebody touches it.

const get = (id) => document.getElementById(id);
const map = { plot: get("map").querySelector(".plot"), canvas: get("map").querySelector("canvas") };
const space = get("space").querySelector(".plot");
const curves = ["losses", "schedules", "rates"];
const plotOf = (name) => get(name).querySelector(".plot");

const state = {
  settings: null,
  lesson: null, // its name, while the settings are a lesson's
  chosen: 0, // the marble whose settings the fields show
  land: null, // the landscape, prepared
  marbles: [], // as fastopt told of them
};
const clock = clockOf(show);

// --- asking -------------------------------------------------------------------------------------------------------

let asking = null; // a promise, until all is answered
let waiting = null; // what to ask for next; while somebody drags, only the latest counts
let wanted = null; // the latest settings, asked for or shown: what the next change begins with

/**
 * Ask for the paths of new settings, and show them: at the end, or rolling from the start, and perhaps with another
 * marble chosen. The promise is kept when the page shows the latest settings.
 */
function ask(settings, { rolling = false, dragging = false, chosen = state.chosen } = {}) {
  waiting = { settings, rolling, dragging, chosen };
  wanted = settings;
  asking ??= answerAll().finally(() => (asking = null));
  return asking;
}

async function answerAll() {
  while (waiting !== null) {
    const now = waiting;
    waiting = null;
    await answered(now);
  }
  wanted = state.settings; // what was refused is forgotten
}

async function answered({ settings, rolling, dragging, chosen }) {
  const told = await SOURCE.paths(settings, state.lesson);
  if (say(told.error)) return;
  const name = settingOf(settings, "landscape");
  if (state.land?.name !== name && !(await enter(name))) return;
  state.settings = settings;
  state.marbles = told.marbles.map((each, i) => marbleTold(each, PAGE.colours[i], state.land));
  state.chosen = Math.min(chosen, state.marbles.length - 1);
  const steps = Math.max(...state.marbles.map((each) => each.steps));
  clock.reset(steps, rolling ? 0 : steps, rolling);
  showCards();
  get("ends").hidden = true;
  showSpaceSoon(true);
  if (dragging) return;
  showCurves();
  if (PAGE.live) history.replaceState(null, "", addressOf(settings));
}

/** Go to another landscape; return whether that was possible. */
async function enter(name) {
  const told = await SOURCE.landscape(name);
  if (say(told.error)) return false;
  state.land = { name, ...prepared(told) };
  await drawMap(map.plot, state.land);
  placeCanvas();
  showText();
  return true;
}

/** Show a message, or none, and fit the plots to the height that it leaves; return whether there is one. */
function say(error) {
  const others = get("message").hidden === Boolean(error);
  get("message").hidden = !error;
  get("message").textContent = error ?? "";
  if (others) fitAll();
  return Boolean(error);
}

// --- changing -----------------------------------------------------------------------------------------------------

/** Change a setting of the page, or of the chosen marble. */
function change(name, value, ofMarble) {
  const settings = structuredClone(wanted);
  (ofMarble ? settings.marbles[state.chosen] : settings)[name] = value;
  if (name === "landscape") {
    delete settings.x;
    delete settings.y;
  }
  leaveLesson();
  ask(settings).then(() => rebuilding.has(name) && showFields());
}

const rebuilding = new Set(["rule", "lr_shape", "momentum_shape", "landscape"]); // other fields appear

/** Change a setting by its name in a lesson's grid. */
function changeStop(name, value) {
  const settings = structuredClone(wanted);
  const [number, of] = name.split(".");
  if (of === undefined) settings[name] = value;
  else settings.marbles[number - 1][of] = value;
  ask(settings);
}

function startLesson(name) {
  state.lesson = name;
  const chosen = PAGE.lessons[name].settings.marbles.length - 1;
  clock.speed = PAGE.lessons[name].settings.steps / 5;
  get("speed").value = Math.log10(clock.speed);
  showLessons();
  return ask(settingsOfLesson(name), { rolling: true, chosen }).then(showFields);
}

function leaveLesson() {
  if (!PAGE.live || state.lesson === null) return;
  state.lesson = null;
  showLessons();
}

function addMarble() {
  const settings = structuredClone(wanted);
  settings.marbles.push({ ...settings.marbles[state.chosen] });
  ask(settings, { chosen: settings.marbles.length - 1 }).then(showFields);
}

function removeMarble(which) {
  const settings = structuredClone(wanted);
  settings.marbles.splice(which, 1);
  ask(settings, { chosen: state.chosen - (which < state.chosen) }).then(showFields);
}

function choose(which) {
  state.chosen = which;
  [...get("marbles").children].forEach((card, i) => card.setAttribute("aria-checked", String(i === which)));
  showFields();
  show(clock.step, !clock.playing && clock.step < clock.steps);
}

/** Let all marbles roll from random starts, a few at a time, so that the bars fill, until a setting changes. */
async function rollFromStarts() {
  const settings = state.settings;
  const totals = settings.marbles.map(() => Object.fromEntries(Object.keys(PAGE.ends).map((end) => [end, 0])));
  get("starts").disabled = true;
  get("ends").hidden = false;
  for (let first = 0; first < PAGE.randomStarts; first += 10) {
    const told = await SOURCE.starts(settings, first, 10);
    if (state.settings !== settings || say(told.error)) break;
    told.ends.forEach((ends, i) => Object.entries(ends).forEach(([end, count]) => (totals[i][end] += count)));
    totals.forEach((ends, i) => showBar(i, ends));
  }
  get("starts").disabled = false;
}

async function showProgram() {
  const told = await SOURCE.snippet(wanted);
  if (say(told.error)) return;
  const program = get("program");
  program.querySelector("pre").textContent = told.code;
  program.showModal();
  const copied = await navigator.clipboard?.writeText(told.code).then(() => true, () => false);
  get("copied").textContent = copied ? ", copied" : ": select and copy it";
}

// --- showing ------------------------------------------------------------------------------------------------------

/** Show the marbles at a step. */
function show(step, stepping) {
  if (state.land === null || state.marbles.length === 0) return;
  drawMarbles(map.canvas, state.land, state.marbles, state.chosen, step, stepping);
  get("at").max = clock.steps;
  get("at").value = Math.floor(step);
  get("count").textContent = `step ${Math.floor(step)} of ${clock.steps}`;
  get("play").textContent = clock.playing ? "⏸" : "▶";
  get("arrows").hidden = !stepping;
  get("magnified").textContent = stepping ? timesOf(magnification(state.land, state.marbles[state.chosen])) : "";
  const share = clock.steps ? step / (settingOf(state.settings, "steps") || 1) : 0;
  for (const name of curves) placeMark(name, share);
  showSpaceSoon(false);
}

const SPACE_EVERY = 80; // milliseconds: without a graphics card the surface takes longer than all else
let spaceDue = null; // what is to be drawn: new paths, or only the marbles elsewhere

function showSpaceSoon(paths) {
  if (!WEBGL) return;
  if (spaceDue === null) setTimeout(showSpace, SPACE_EVERY);
  spaceDue = { paths: paths || Boolean(spaceDue?.paths) };
}

async function showSpace() {
  const step = Math.floor(clock.step);
  const { paths } = spaceDue;
  spaceDue = { paths: false };
  if (paths) await drawSpace(space, state.land, state.marbles, step);
  else await moveInSpace(space, state.land, state.marbles, step);
  const again = spaceDue.paths || Math.floor(clock.step) !== step;
  if (again) setTimeout(showSpace, SPACE_EVERY);
  else spaceDue = null;
}

const timesOf = (factor) => (factor === 1 ? "" : `(drawn ${factor.toLocaleString("en")} times as long)`);

function placeMark(name, share) {
  const figure = get(name);
  const right = plotOf(name).layout?.margin?.r ?? CURVES.r;
  figure.querySelector(".mark").style.left = `${CURVES.l + share * (figure.clientWidth - CURVES.l - right)}px`;
}

function showCurves() {
  const steps = settingOf(state.settings, "steps");
  const adaptive = state.marbles.filter((each) => each.rates !== null);
  drawLosses(plotOf("losses"), state.marbles, steps, get("log").checked);
  get("above").hidden = !get("log").checked || state.land.least === 0;
  drawSchedules(plotOf("schedules"), state.marbles, steps);
  const others = get("rates").hidden !== (adaptive.length === 0); // panels get another width
  get("rates").hidden = adaptive.length === 0;
  get("curves").classList.toggle("without-rates", adaptive.length === 0);
  get("rates").querySelector("span").textContent = `effective rate of ${state.land.axes[0]}, and of ${state.land.axes[1]} (dashed)`;
  if (adaptive.length > 0) drawRates(plotOf("rates"), adaptive, steps);
  if (others) fit(curves.map(plotOf));
}

/** Show a card for each marble: its rule, where it ends, and the bar of its random starts. */
function showCards() {
  const cards = state.marbles.map((marble, i) => cardOf(marble, i));
  get("marbles").replaceChildren(...cards);
  get("add").disabled = state.marbles.length >= PAGE.colours.length;
}

function cardOf(marble, i) {
  const card = document.createElement("div");
  card.className = "marble";
  card.style.setProperty("--colour", marble.colour);
  Object.assign(card, { tabIndex: 0, onclick: () => choose(i) });
  card.setAttribute("role", "radio");
  card.setAttribute("aria-checked", String(i === state.chosen));
  card.onkeydown = (event) => event.key === "Enter" && choose(i);
  const rule = settingOfMarble(state.settings.marbles[i], "rule");
  card.append(textOf("b", String(i + 1)), textOf("span", PAGE.marble.rule.titles[rule]));
  if (PAGE.live && state.marbles.length > 1) {
    const remove = textOf("button", "×");
    Object.assign(remove, { className: "remove", title: "Remove this marble", onclick: (event) => (event.stopPropagation(), removeMarble(i)) });
    card.append(remove);
  }
  card.append(textOf("small", endingOf(marble)));
  return card;
}

function textOf(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

function endingOf(marble) {
  const loss = marble.final === null ? "no finite loss" : `loss ${Number(marble.final.toPrecision(3))}`;
  if (marble.end === "lost") return `thrown out at step ${marble.steps}`;
  if (marble.home !== null) return `in the basin from step ${marble.home}; ${loss}`;
  return `${PAGE.ends[marble.end].said}; ${loss}`;
}

function showBar(which, ends) {
  const card = get("marbles").children[which];
  const bar = card.querySelector(".bar") ?? card.appendChild(Object.assign(document.createElement("div"), { className: "bar" }));
  bar.title = Object.entries(ends).map(([end, count]) => `${PAGE.ends[end].said}: ${count}`).join(", ");
  bar.replaceChildren(
    ...Object.entries(ends).map(([end, count]) => {
      const part = document.createElement("i");
      part.style.cssText = `width: ${(100 * count) / PAGE.randomStarts}%; background: ${PAGE.ends[end].colour}`;
      part.dataset.count = count;
      part.dataset.end = end;
      return part;
    })
  );
}

/** Make the fields anew: those that the chosen marble's rule and schedules have. */
function showFields() {
  if (state.settings === null) return;
  if (!PAGE.live) return showStops();
  const marble = state.settings.marbles[state.chosen];
  const ofMarble = (name) => fieldOf(name, PAGE.marble[name], settingOfMarble(marble, name), (value) => change(name, value, true));
  get("of-marble").replaceChildren(...namesOf(marble).map(ofMarble));
  const ofPage = (name) => fieldOf(name, fieldOfPage(name), settingOf(state.settings, name), (value) => change(name, value, false));
  get("of-page").replaceChildren(...Object.keys(PAGE.page).map(ofPage));
}

/** The start's sliders reach over the map. */
function fieldOfPage(name) {
  const field = PAGE.page[name];
  return name === "x" || name === "y" ? { ...field, label: `start, ${state.land.axes[name === "x" ? 0 : 1]}`, reach: state.land[name] } : field;
}

function namesOf(marble) {
  const kind = PAGE.kinds[settingOfMarble(marble, "rule")];
  const shaped = (of) => [`${of}_shape`, ...PAGE.shapes[settingOfMarble(marble, `${of}_shape`)].map((name) => `${of}_${name}`)];
  const momentum = kind.momentum === null ? [] : shaped("momentum");
  return ["rule", "lr", ...shaped("lr"), ...kind.fields, ...momentum, "weight_decay", "max_grad_norm"];
}

/** In the exported page: the sliders of the lesson, which stop where there are paths. */
function showStops() {
  const grid = Object.entries(PAGE.lessons[state.lesson].grid);
  const fields = grid.map(([name, stops]) => {
    const [number, of] = name.split(".");
    const field = of === undefined ? PAGE.page[name] : PAGE.marble[of];
    const label = of === undefined ? field.label : `${number}: ${field.label}`;
    return fieldOf(name, { label, help: field.help, stops }, valueAt(state.settings, name), (value) => changeStop(name, value));
  });
  get("of-marble").replaceChildren(...fields);
}

function showLessons() {
  const lessons = Object.entries(PAGE.lessons).map(([name, lesson]) => {
    const button = textOf("button", lesson.title);
    button.dataset.lesson = name;
    button.setAttribute("aria-pressed", String(name === state.lesson));
    button.onclick = () => startLesson(name);
    return button;
  });
  get("lessons").replaceChildren(...lessons);
  showText();
}

/** Say what to look for, or what the landscape is and what one can do. */
function showText() {
  const lesson = PAGE.lessons[state.lesson];
  get("text").textContent = lesson ? lesson.text : `${state.land?.note ?? ""} ${PAGE.hint}`;
}

// --- touching -----------------------------------------------------------------------------------------------------

function placeCanvas() {
  const figure = get("map");
  const size = [figure.clientWidth - MARGIN.l - MARGIN.r, figure.clientHeight - MARGIN.t - MARGIN.b];
  Object.assign(map.canvas.style, { left: `${MARGIN.l}px`, top: `${MARGIN.t}px`, width: `${size[0]}px`, height: `${size[1]}px` });
}

/** Move the start to where a pointer is. */
function startAt(event, how) {
  const box = map.canvas.getBoundingClientRect();
  const share = [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
  const at = ["x", "y"].map((axis, i) => {
    const [low, high] = state.land[axis];
    return Number((low + Math.min(1, Math.max(0, share[i])) * (high - low)).toPrecision(4));
  });
  leaveLesson();
  return ask({ ...structuredClone(wanted), x: at[0], y: at[1] }, how);
}

/** Say where the start can be moved; the message is at the top, and where the window is small the map may be far below. */
function sayThatTheStartStays() {
  say(PAGE.fixed);
  get("message").scrollIntoView({ block: "nearest" });
}

function listenToMap() {
  let moved = false;
  map.canvas.onpointerdown = (event) => {
    if (!PAGE.live) return sayThatTheStartStays();
    map.canvas.setPointerCapture(event.pointerId);
    moved = false;
    startAt(event, { dragging: true });
  };
  map.canvas.onpointermove = (event) => {
    if (!map.canvas.hasPointerCapture(event.pointerId)) return;
    moved = true;
    startAt(event, { dragging: true });
  };
  map.canvas.onpointerup = (event) => {
    if (map.canvas.hasPointerCapture(event.pointerId)) startAt(event, { rolling: !moved }).then(showFields);
  };
}

function listenToKeys() {
  const keys = { " ": () => clock.toggle(), ArrowRight: () => clock.take(1), ArrowLeft: () => clock.take(-1), Home: () => clock.go(0) };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog, button")) return;
    const which = Number(event.key) - 1;
    if (state.marbles[which]) choose(which);
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });
}

function listen() {
  get("play").onclick = () => clock.toggle();
  get("restart").onclick = () => clock.go(0);
  get("forward").onclick = () => clock.take(1);
  get("back").onclick = () => clock.take(-1);
  get("at").oninput = () => clock.go(Number(get("at").value));
  get("speed").oninput = () => (clock.speed = 10 ** Number(get("speed").value));
  get("log").onchange = showCurves;
  get("add").onclick = addMarble;
  get("starts").onclick = rollFromStarts;
  get("code").onclick = showProgram;
  for (const form of document.querySelectorAll("aside form")) form.onsubmit = (event) => event.preventDefault();
  window.onresize = fitAll;
  listenToMap();
  listenToKeys();
}

/** Fit plots to the window. */
function fit(plots) {
  for (const plot of plots.filter((each) => each.data && each.clientWidth > 0)) Plotly.Plots.resize(plot);
  placeCanvas();
  show(clock.step, !clock.playing && clock.step < clock.steps);
}

function fitAll() {
  fit([map.plot, space, ...curves.map(plotOf)]);
}

function describeEnds() {
  const legend = Object.values(PAGE.ends).flatMap(({ said, colour }) => {
    const entry = textOf("span", said);
    const patch = document.createElement("i");
    patch.style.background = colour;
    entry.prepend(patch);
    return [entry, " "];
  });
  get("ends").replaceChildren(`of ${PAGE.randomStarts}:`, ...legend);
}

/** Begin with what the address says, or with the first lesson; then listen to whoever touches the page. */
async function begin() {
  describeEnds();
  if (!WEBGL) space.append(textOf("p", WITHOUT_WEBGL));
  document.body.classList.toggle("fixed", !PAGE.live);
  if (!PAGE.live) map.canvas.setAttribute("aria-label", "map");
  get("actions").hidden = get("of-page").hidden = !PAGE.live;
  if (location.search.length <= 1 || !PAGE.live) await startLesson(Object.keys(PAGE.lessons)[0]);
  else await startAddress();
  listen();
}

/** Show what the address says; where that makes no sense the first lesson, beside the message that says why. */
async function startAddress() {
  showLessons();
  await ask(settingsOf(location.search));
  if (state.settings === null) {
    const message = get("message").textContent;
    await startLesson(Object.keys(PAGE.lessons)[0]);
    say(message);
  }
  showFields();
}

begin();
