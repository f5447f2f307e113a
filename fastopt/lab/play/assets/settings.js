// The settings of the page as plain objects, and the address that has those which are not the defaults.

/** Return settings from an address; what cannot be read as a number stays a word, which fastopt then refuses. */
function settingsOf(search) {
  const given = new URLSearchParams(search);
  const settings = { marbles: [] };
  for (const [name, value] of given) {
    if (name === "marble") settings.marbles.push(marbleOf(value));
    else settings[name] = valueOf(PAGE.page[name], value);
  }
  if (settings.marbles.length === 0) settings.marbles.push({});
  return settings;
}

/** Return a marble from its part of an address: "rule:momentum,lr:0.1". */
function marbleOf(text) {
  const marble = {};
  for (const part of text.split(",").filter(Boolean)) {
    const [name, ...rest] = part.split(":");
    marble[name] = valueOf(PAGE.marble[name], rest.join(":"));
  }
  return marble;
}

function valueOf(field, text) {
  if (field?.titles || text.trim() === "" || Number.isNaN(Number(text))) return text;
  return Number(text);
}

/** Return the address of settings. */
function addressOf(settings) {
  const address = new URLSearchParams();
  for (const [name, value] of Object.entries(settings)) {
    if (name !== "marbles") address.set(name, value);
  }
  for (const marble of settings.marbles) {
    const parts = Object.entries(marble).filter(([name, value]) => PAGE.marble[name]?.default !== value);
    address.append("marble", parts.map(([name, value]) => `${name}:${value}`).join(","));
  }
  return `?${address.toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`;
}

/** Return the value of a setting: the default where it is not given; the start's is the landscape's. */
function settingOf(settings, name) {
  if (settings[name] !== undefined) return settings[name];
  const place = ["x", "y"].indexOf(name);
  return place < 0 ? PAGE.page[name].default : PAGE.starts[settingOf(settings, "landscape")]?.[place];
}

/** Return the value of a marble's setting. */
function settingOfMarble(marble, name) {
  return marble[name] ?? PAGE.marble[name].default;
}

/** Return the settings of a lesson, as a copy that may be changed. */
function settingsOfLesson(name) {
  return structuredClone(PAGE.lessons[name].settings);
}

/** Return a number as people write it. */
function written(value) {
  if (typeof value !== "number") return String(value);
  return value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6) ? value.toExponential() : String(value);
}
