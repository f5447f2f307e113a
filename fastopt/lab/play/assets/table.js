// Where paths come from in the exported page: a table of them, for the values at which each lesson's sliders stop.

const SOURCE = {
  paths: async (settings, lesson) => {
    const table = TABLE.lessons[lesson];
    let place = 0;
    for (const [name, stops] of Object.entries(PAGE.lessons[lesson].grid)) {
      place = place * stops.length + Math.max(0, stops.indexOf(valueAt(settings, name)));
    }
    return { marbles: table[place].map((each) => TABLE.marbles[each]) };
  },
  landscape: async (name) => TABLE.landscapes[name],
};

/** Return the value of a setting by its name in a lesson's grid: "noise", or "2.lr" of the second marble. */
function valueAt(settings, name) {
  const [number, of] = name.split(".");
  return of === undefined ? settingOf(settings, name) : settingOfMarble(settings.marbles[number - 1], of);
}
