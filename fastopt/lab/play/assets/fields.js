// Fields: a label, a slider and a number that can be typed; or a choice; or, in the exported page, a slider with stops.

const NOTCHES = 1000; // of a slider

/** Return what maps a value to the share of a slider that it stands at, and back. */
function scaleOf(field) {
  const [low, high] = field.reach;
  if (field.scale === "logarithmic") {
    const span = Math.log(high / low);
    const share = (value) => (value <= 0 ? 0 : Math.log(value / low) / span);
    return { share, value: (at) => (field.zero && at === 0 ? 0 : low * Math.exp(at * span)) };
  }
  if (field.scale === "near one") {
    const span = Math.log((1 - high) / (1 - low));
    const share = (value) => (value >= 1 ? 1 : Math.log((1 - value) / (1 - low)) / span);
    return { share, value: (at) => 1 - (1 - low) * Math.exp(at * span) };
  }
  return { share: (value) => (value - low) / (high - low), value: (at) => low + at * (high - low) };
}

/** Round to what a slider can be set to; near one, the distance from it has the digits. */
function rounded(field, value) {
  if (field.whole) return Math.round(value);
  if (field.scale === "near one") return Number((1 - Number((1 - value).toPrecision(2))).toPrecision(5));
  return Number(value.toPrecision(3));
}

function labelOf(id, field) {
  const label = document.createElement("label");
  label.htmlFor = id;
  label.textContent = field.label;
  if (field.help) label.title = field.help;
  return label;
}

/** Make a field: an element; `change(value)` is called whenever somebody changes it. */
function fieldOf(id, field, value, change) {
  const row = document.createElement("div");
  row.className = "field";
  row.dataset.name = id;
  row.append(labelOf(id, field));
  if (field.titles) row.append(choice(id, field, value, change));
  else if (field.stops) row.append(...slider(id, value, stopsOf(field), change));
  else row.append(...slider(id, value, scaled(field), change), typed(id, field, value, change));
  return row;
}

function choice(id, field, value, change) {
  const select = document.createElement("select");
  select.id = id;
  for (const [word, title] of Object.entries(field.titles)) select.add(new Option(title, word, false, word === value));
  select.onchange = () => change(select.value);
  return select;
}

function scaled(field) {
  const scale = scaleOf(field);
  const share = (value) => Math.min(1, Math.max(0, scale.share(value)));
  return {
    most: NOTCHES,
    place: (value) => Math.round(NOTCHES * share(value)),
    value: (place) => rounded(field, scale.value(place / NOTCHES)),
  };
}

function stopsOf(field) {
  const places = { most: field.stops.length - 1, value: (place) => field.stops[place], shown: true };
  places.place = (value) => Math.max(0, field.stops.indexOf(value));
  return places;
}

/** Make a slider; one with stops shows its value beside it. */
function slider(id, value, places, change) {
  const input = document.createElement("input");
  Object.assign(input, { type: "range", min: 0, max: places.most, step: 1, id: places.shown ? id : `${id}-slider` });
  input.value = places.place(value);
  if (!places.shown) input.setAttribute("aria-label", id);
  const shown = document.createElement("output");
  shown.textContent = written(value);
  input.oninput = () => {
    const moved = places.value(Number(input.value));
    const text = document.getElementById(id);
    if (places.shown) shown.textContent = written(moved);
    else text.value = written(moved);
    change(moved);
  };
  return places.shown ? [input, shown] : [input];
}

function typed(id, field, value, change) {
  const input = document.createElement("input");
  Object.assign(input, { type: "text", id, value: written(value), inputMode: "decimal", autocomplete: "off" });
  input.onchange = () => {
    const read = input.value.trim() === "" ? input.value : Number(input.value.replace(",", "."));
    const number = Number.isNaN(read) ? input.value : read;
    if (typeof number === "number") {
      const places = scaled(field);
      document.getElementById(`${id}-slider`).value = places.place(number);
    }
    change(number);
  };
  return input;
}
