// Where paths come from: the server, which computes them with fastopt at every touch.

async function asked(what, question) {
  let answer;
  try {
    answer = await fetch(what, { method: "POST", body: JSON.stringify(question) });
  } catch {
    return { error: "fastopt does not answer: start the command again, and load the page anew" };
  }
  return answer.json();
}

const SOURCE = {
  paths: (settings) => asked("paths", settings),
  landscape: (name) => asked("landscape", name),
  starts: (settings, first, count) => asked("starts", { settings, first, count }),
  snippet: (settings) => asked("snippet", settings),
};
