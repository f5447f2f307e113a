// Time: the step at which the marbles are, and playing, pausing and stepping.

/** Make a clock that calls `show(step, stepping)` whenever the step changes. */
function clockOf(show) {
  let last = null; // the time of the last frame
  const clock = {
    step: 0,
    steps: 0,
    playing: false,
    speed: 60, // steps per second

    /** Set how many steps there are, and go to one of them; `playing` says whether to go on from there. */
    reset(steps, step, playing) {
      clock.steps = steps;
      clock.go(step, playing);
    },

    /** Go to a step, and pause there or play on. */
    go(step, playing = false) {
      clock.step = Math.max(0, Math.min(clock.steps, step));
      const begins = playing && !clock.playing;
      clock.playing = playing && clock.step < clock.steps;
      if (begins && clock.playing) {
        last = null;
        requestAnimationFrame(frame);
      }
      show(clock.step, !clock.playing && clock.step < clock.steps);
    },

    /** Take one step forward or back, from a whole one. */
    take(change) {
      clock.go((change > 0 ? Math.floor(clock.step) : Math.ceil(clock.step)) + change);
    },

    /** Play from here, from the start if this is the end, or pause. */
    toggle() {
      if (clock.playing) clock.go(Math.floor(clock.step));
      else clock.go(clock.step >= clock.steps ? 0 : clock.step, true);
    },
  };

  function frame(now) {
    if (!clock.playing) return;
    const passed = last === null ? 0 : (now - last) / 1000;
    last = now;
    clock.go(clock.step + passed * clock.speed, true);
    if (clock.playing) requestAnimationFrame(frame);
  }

  return clock;
}
