"""The faults by which ``mutants.py`` judges the tests: each a small change that a test must find.

A text to be replaced stands once in its file; `tests/test_mutants.py` says which no longer does. Each names the tests
that reach it, chosen by hand: the quickest ones that should fail.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes
    ----------
    name : str
        What is wrong then.
    file : str
        Where, from the root of the checkout.
    before, after : str
        The text that stands there once, and what takes its place.
    tests : tuple of str
        Files of tests that reach the place.
    only : str
        What pytest's ``-k`` is told, to choose among these; empty for all.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    only: str = ""

    @property
    def in_extension(self) -> bool:
        """Whether the extension has to be built anew."""
        return self.file.endswith((".cpp", ".h"))

    @property
    def in_numba(self) -> bool:
        """Whether kernels that Numba has compiled are other ones: its cache sees changes of one file alone."""
        return self.file.startswith("kernels/") and self.file.endswith(".py")

    @property
    def selection(self) -> tuple[str, ...]:
        """What pytest is told."""
        return (*self.tests, *(("-k", self.only) if self.only else ()))

    def applied(self, text: str) -> str:
        """Return a file's text with the fault in it."""
        if text.count(self.before) != 1:
            raise ValueError(f"{self.name}: its text stands {text.count(self.before)} times in {self.file}, not once")
        return text.replace(self.before, self.after)


# Rules, loop and schedules in Numba, and their cache.
NUMBA = (
    Mutant(
        "Nesterov does not look ahead",
        "kernels/cpu.py",
        "return p - real(lr) * (g + real(momentum) * v), v",
        "return p - real(lr) * v, v",
        ("tests/test_rules.py",),
        only="trajectories and nesterov",
    ),
    Mutant(
        "averages of squares multiply in the wrong order",
        "kernels/cpu.py",
        "real(gain) * g * g\n",
        "real(gain) * (g * g)\n",
        ("tests/test_range.py",),
        only="against_the_oracle",
    ),
    Mutant(
        "AMSGrad takes the smaller average",
        "kernels/cpu.py",
        "w = w if v < w else v  # NaN, too",
        "w = v if v < w else w",
        ("tests/test_rules.py",),
        only="trajectories and adam_amsgrad",
    ),
    Mutant(
        "AMSGrad lets a NaN go by",
        "kernels/cpu.py",
        "w = w if v < w else v  # NaN, too",
        "w = v if w < v else w",
        ("tests/test_rules.py",),
        only="nan_is_the_largest",
    ),
    Mutant(
        "centered RMSProp adds the square of the mean",
        "kernels/cpu.py",
        "variance = s - a * a",
        "variance = s + a * a",
        ("tests/test_rules.py",),
        only="trajectories and rmsprop_centered",
    ),
    Mutant(
        "a variance below zero goes by",
        "kernels/cpu.py",
        "return np.sqrt(type(s)(0) if variance < 0 else variance)",
        "return np.sqrt(variance)",
        ("tests/test_rules.py",),
        only="variance",
    ),
    Mutant(
        "the gradient's factor takes in weight decay",
        "kernels/cpu.py",
        "scale * widen(g[i]) + decay * widen(p[i])",
        "scale * (widen(g[i]) + decay * widen(p[i]))",
        ("tests/test_rules.py",),
        only="trajectories and sgd",
    ),
    Mutant(
        "the column beside whole blocks of a tile is left out",
        "kernels/cpu.py",
        "for i in range(whole, length):",
        "for i in range(whole + 1, length):",
        ("tests/test_layouts.py",),
    ),
    Mutant(
        "bfloat16 rounds ties up",
        "kernels/cpu.py",
        "rounded = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16",
        "rounded = (pattern + 0x8000) >> 16",
        ("tests/test_half.py",),
        only="conversions",
    ),
    Mutant(
        "a tensor without a gradient is updated",
        "kernels/cpu.py",
        "if tensor.grad == 0:",
        "if tensor.grad < 0:",
        ("tests/test_optimizers.py",),
        only="late or missing",
    ),
    Mutant(
        "all tensors take the first hyper row",
        "kernels/cpu.py",
        "(tensor.hyper + 1, HYPERS), np.float64)[tensor.hyper]",
        "(tensor.hyper + 1, HYPERS), np.float64)[0]",
        ("tests/test_optimizers.py",),
        only="groups",
    ),
    Mutant(
        "kernels of all dtypes have one name in the cache",
        "kernels/cpu.py",
        'kernel.__name__ = kernel.__qualname__ = f"{name}_{given.name}_abi{ABI}"',
        'kernel.__name__ = kernel.__qualname__ = f"{name}_abi{ABI}"',
        ("tests/test_cache.py",),
        only="names_of_their_own",
    ),
    Mutant(
        "without a directory for the cache nothing is compiled",
        "kernels/cache.py",
        "    except RuntimeError:  #",
        "    except KeyError:  #",
        ("tests/test_cache.py", "tests/test_cli.py"),
        only="without_a_writable or nothing_can_be_kept or without_pool",
    ),
    Mutant(
        "warm restarts come a step late",
        "kernels/schedules.py",
        "while t >= period:",
        "while t > period:",
        ("tests/test_schedules.py", "tests/test_schedules_torch.py"),
        only="test_values or whole_periods or parity",
    ),
    Mutant(
        "a milestone counts a step late",
        "kernels/schedules.py",
        "if record[at + 1 + middle] <= t:",
        "if record[at + 1 + middle] < t:",
        ("tests/test_schedules.py", "tests/test_schedules_torch.py"),
        only="test_values or parity",
    ),
    Mutant(
        "a sequence does not move its parts' clock",
        "kernels/schedules.py",
        "t -= record[first + number]",
        "t -= 0.0",
        ("tests/test_schedules.py", "tests/test_schedules_torch.py"),
        only="test_values or parity",
    ),
)

# The extension: pool, readers, and steps that repeat the last one.
EXTENSION = (
    Mutant(
        "a repeated step forgets the scale",
        "kernels/step.cpp",
        "        row[0] *= step.scale;\n",
        "",
        ("tests/test_torch_watch.py", "tests/test_torch_scaled_losses.py"),
        only="repetitions or scaled_losses",
    ),
    Mutant(
        "a repeated step is not counted",
        "kernels/step.cpp",
        "    ++step.taken;\n",
        "",
        ("tests/test_torch_watch.py",),
        only="repetitions",
    ),
    Mutant(
        "of several launches, a repeated step has the first one alone",
        "kernels/step.cpp",
        "i < step.count; ++i) run(",
        "i < 1; ++i) run(",
        ("tests/test_optimizers.py",),
        only="mixed_dtypes",
    ),
    Mutant(
        "a frozen parameter's gradient goes unseen",
        "kernels/tensors.cpp",
        "    if (wanted.descriptor != nullptr && !all_frozen(wanted)) return -1;\n",
        "",
        ("tests/test_torch_frozen.py",),
    ),
    Mutant(
        "a gradient over a parameter goes unseen",
        "kernels/tensors.cpp",
        "tensor.address() + tensor.bytes(shape))\n               ?",
        "tensor.address())\n               ?",
        ("tests/test_torch_refusals.py",),
        only="gradients_in_memory",
    ),
    Mutant(
        "assigned options go unseen",
        "kernels/tensors.cpp",
        "    if (!same_entries(watched)) return -3;\n",
        "",
        ("tests/test_torch_watch.py",),
        only="assigned_options",
    ),
    Mutant(
        "counts that somebody has written go unseen",
        "kernels/tensors.cpp",
        " || !same_counts(watched)) return -1;",
        ") return -1;",
        ("tests/test_torch_watch.py", "tests/test_torch_edits.py"),
        only="changes_of_states or states_that_users_change",
    ),
    Mutant(
        "a tensor's new address goes unseen",
        "kernels/tensors.cpp",
        " || tensor.address() != watched.addresses[i]) return false;",
        ") return false;",
        ("tests/test_torch_watch.py", "tests/test_torch_edits.py"),
        only="changes_of_parameters or data_is_swapped",
    ),
    Mutant(
        "single calls take arrays that overlap",
        "kernels/reader.cpp",
        "if (apart < view->len) return 0;",
        "if (apart == 0) return 0;",
        ("tests/test_errors_calls.py",),
        only="overlap",
    ),
    Mutant(
        "an array in another layout is read as its parameter",
        "kernels/reader.cpp",
        "std::memcmp(buffer_.strides, shape.strides, bytes) == 0",
        "true",
        ("tests/test_layouts.py",),
        only="any_parameter",
    ),
    Mutant(
        "a claim goes beyond the last chunk",
        "kernels/pool.cpp",
        "int64_t end = begin + grain < chunks ? begin + grain : chunks;",
        "int64_t end = begin + grain;",
        ("tests/test_pool.py",),
        only="every_chunk",
    ),
    Mutant(
        "the team leaves the last chunk out",
        "kernels/team.cpp",
        "if (begin >= region.chunks) return;",
        "if (begin + 1 >= region.chunks) return;",
        ("tests/test_team.py",),
        only="every_chunk or same_bits",
    ),
)

# Rules and rows in C++.
CPP = (
    Mutant(
        "a device asks a schedule for the next step",
        "kernels/rows.h",
        "schedule(record, inputs.schedule_steps + taken)",
        "schedule(record, inputs.schedule_steps + taken + 1.0)",
        ("tests/test_cuda_kernels.py",),
        only="advance",
    ),
    Mutant(
        "in C++, the bias is corrected for the step before",
        "kernels/rules.h",
        "double root = sqrt(1.0 - pow(option[4], step));",
        "double root = sqrt(1.0 - pow(option[4], step - 1.0));",
        ("tests/test_headers.py",),
        only="rows_are",
    ),
    Mutant(
        "in C++, only the first gradient is dampened",
        "kernels/rules.h",
        "double damping = first ? 1.0 : 1.0 - option[4];",
        "double damping = !first ? 1.0 : 1.0 - option[4];",
        ("tests/test_headers.py",),
        only="rows_are",
    ),
    Mutant(
        "in C++, maximize is the other way round",
        "kernels/rules.h",
        "return maximize != 0 ? -1.0 : 1.0;",
        "return maximize == 0 ? -1.0 : 1.0;",
        ("tests/test_headers.py",),
        only="rows_are",
    ),
    Mutant(
        "in C++, what fills no vector is left out",
        "kernels/rules.h",
        "    update_by<Rule, T>(p, g, states, done, n, hyper);\n",
        "    (void)done;\n",
        ("tests/test_headers.py",),
        only="arrays_are_updated",
    ),
    Mutant(
        "in C++, cosine falls where it should rise",
        "kernels/schedules.h",
        "if (shape == Shape::Cosine) return wave(done);",
        "if (shape == Shape::Cosine) return wave(1.0 - done);",
        ("tests/test_headers.py",),
        only="schedules_against_numba",
    ),
)

# What runs on a GPU, and what speaks with it.
CUDA = (
    Mutant(
        "a step that is to be skipped is taken",
        "kernels/fused.cu",
        "    if (job.skip != nullptr && *job.skip != 0) return;\n",
        "",
        ("tests/test_cuda_kernels.py",),
        only="skipped",
    ),
    Mutant(
        "the last element beside packs is left out",
        "kernels/fused.cu",
        "for (int i = whole * width + threadIdx.x; i < length; i += blockDim.x)",
        "for (int i = whole * width + threadIdx.x; i < length - 1; i += blockDim.x)",
        ("tests/test_cuda_kernels.py",),
        only="test_sizes",
    ),
    Mutant(
        "a gradient's alignment is not looked at",
        "kernels/fused.cu",
        " | bit_cast<int64_t>(grad + at);",
        ";",
        ("tests/test_cuda_kernels.py",),
        only="every_alignment",
    ),
    Mutant(
        "rows of a tile lie one after the other",
        "kernels/fused.cu",
        "chunk.offset + row * layout.param_row + i",
        "chunk.offset + row * length + i",
        ("tests/test_cuda_kernels.py",),
        only="strided",
    ),
    Mutant(
        "weight decay of 0 multiplies infinity",
        "kernels/fused.cu",
        "if (decay != 0) g += decay * x;",
        "g += decay * x;",
        ("tests/test_cuda_kernels.py",),
        only="infinite_parameters",
    ),
    Mutant(
        "a device counts a step that it skips",
        "kernels/advance.cu",
        "    if (clock.skip != nullptr && *clock.skip != 0) return;\n",
        "",
        ("tests/test_torch_scaler.py",),
        only="stays_on_the_gpu or skipped",
    ),
    Mutant(
        "a message overwrites what is as new",
        "kernels/advance.cu",
        "*message.version >= message.number",
        "*message.version > message.number",
        ("tests/test_cuda_kernels.py",),
        only="send_keeps",
    ),
    Mutant(
        "steps that a device has counted are counted twice",
        "fastopt/step/device_clock.py",
        "new, self.known, self.pending = taken - self.known, taken, 0",
        "new, self.pending = taken - self.known, 0",
        ("tests/test_gpu_captures.py",),
        only="replay",
    ),
    Mutant(
        "a schedule on a device begins where the host stands",
        "fastopt/step/clock.py",
        'row["schedule_steps"] = options.entries["step"] - known',
        'row["schedule_steps"] = options.entries["step"]',
        ("tests/test_torch_scaler.py",),
        only="scheduled_through_zero",
    ),
    Mutant(
        "gradients that moved before a step that failed are not sent",
        "fastopt/step/gpu.py",
        "self.moved = self.moved or not np.array_equal(self.gradients, addresses)",
        "self.moved = not np.array_equal(self.gradients, addresses)",
        ("tests/test_gpu_launches.py",),
        only="moved or captured_step",
    ),
)

# A step and what it is computed from, on the host.
STEP = (
    Mutant(
        "the bias is corrected for the step before",
        "fastopt/step/clock.py",
        "factor, *row = rule.row(options, step, step_group.first)",
        "factor, *row = rule.row(options, max(step - 1, 1), step_group.first)",
        ("tests/test_rules.py",),
        only="trajectories and adam",
    ),
    Mutant(
        "every step is a parameter's first",
        "fastopt/step/clock.py",
        "                self.keep_states(step_group)\n                step_group.first = False\n",
        "                self.keep_states(step_group)\n",
        ("tests/test_rules.py",),
        only="trajectories and momentum",
    ),
    Mutant(
        "a new scale leaves the hyper rows as they are",
        "fastopt/step/clock.py",
        "self.scale, self.steady = scale, False",
        "self.scale = scale",
        ("tests/test_torch_autograd.py", "tests/test_torch_scaled_losses.py"),
        only="scaled",
    ),
    Mutant(
        "repetitions do not count for the parameters",
        "fastopt/step/clock.py",
        "            step_group.step += steps\n",
        "            step_group.step += 0\n",
        ("tests/test_torch_watch.py",),
        only="repetitions",
    ),
    Mutant(
        "a repeated step has the gradients of the one before",
        "fastopt/step/plan.py",
        "addresses = None if gradients is self.loaded else gradients.addresses",
        "addresses = None",
        ("tests/test_optimizers.py", "tests/test_memory.py"),
        only="mixed_dtypes or new_addresses",
    ),
    Mutant(
        "a step is repeated though others take part",
        "fastopt/step/stepper.py",
        "gradients.strided or gradients.taking_part != plan.taking_part",
        "gradients.strided",
        ("tests/test_optimizers.py", "tests/test_memory.py"),
        only="missing or late or new_addresses",
    ),
    Mutant(
        "a step is repeated though an option was assigned",
        "fastopt/step/clock.py",
        "            if group.version != version:\n                return False\n",
        "            pass\n",
        ("tests/test_optimizers.py",),
        only="changed_between_steps",
    ),
    Mutant(
        "a repeated step has each launch's gradients in a row",
        "fastopt/step/plan.py",
        "places[indices] = launch.places()",
        "places = np.concatenate([launch.places() for launch in self.launches])",
        ("tests/test_optimizers.py",),
        only="mixed_dtypes",
    ),
    Mutant(
        "repetitions are credited twice",
        "fastopt/step/clock.py",
        "        self.credited += steps\n",
        "",
        ("tests/test_optimizers.py",),
        only="resumes or outlives",
    ),
    Mutant(
        "an interrupt tears a step",
        "fastopt/step/stepper.py",
        "        with HeldBack():\n            self.begin(gradients)\n",
        "        if True:\n            self.begin(gradients)\n",
        ("tests/test_interrupts.py",),
        only="is_one_moment and numpy",
    ),
    Mutant(
        "an interrupt tears the count of repetitions",
        "fastopt/step/clock.py",
        "            with HeldBack():\n                self._add(self.tally.credit()",
        "            if True:\n                self._add(self.tally.credit()",
        ("tests/test_interrupts.py",),
        only="is_one_moment and numpy",
    ),
    Mutant(
        "an interrupt tears a load",
        "fastopt/base.py",
        "            with HeldBack():\n                for parameter, state in",
        "            if True:\n                for parameter, state in",
        ("tests/test_interrupts.py",),
        only="saving and numpy",
    ),
    Mutant(
        "an interrupt tears an assignment",
        "fastopt/step/group.py",
        "self.entries |= checked",
        "self.entries.update(checked)",
        ("tests/test_interrupts.py",),
        only="is_assigning",
    ),
    Mutant(
        "an interrupt tears the end of a schedule of torch",
        "fastopt/torch/groups.py",
        "            with HeldBack():\n                self._exchange(new, found)\n",
        "            if True:\n                self._exchange(new, found)\n",
        ("tests/test_interrupts.py",),
        only="is_taking_over",
    ),
    Mutant(
        "a signal that was held back is lost",
        "fastopt/step/interrupts.py",
        "                    handler(number, frame)\n",
        "                    pass\n",
        ("tests/test_interrupts.py",),
        only="is_one_moment and numpy",
    ),
    Mutant(
        "parameters may overlap",
        "fastopt/step/plan.py",
        "if (pair := self.extents.first_overlap()) is not None:",
        "if (pair := self.extents.first_overlap()) is not None and False:",
        ("tests/test_errors_parameters.py",),
        only="overlap",
    ),
    Mutant(
        "new states are not kept off gradients",
        "fastopt/step/clock.py",
        "        group.new_states = []\n        self.plan.forget_extents()\n",
        "        group.new_states = []\n",
        ("tests/test_errors_gradients.py",),
        only="over_a_state",
    ),
    Mutant(
        "a loaded state is not where the tables say",
        "fastopt/base.py",
        "                self._stepper = self._new_stepper()\n",
        "",
        ("tests/test_optimizers.py", "tests/test_memory.py"),
        only="load or resumes",
    ),
    Mutant(
        "a step keeps its gradients",
        "fastopt/base.py",
        "                    gradients.release()\n",
        "                    pass\n",
        ("tests/test_memory.py",),
        only="not_kept",
    ),
    Mutant(
        "a state dict shares arrays with the optimizer",
        "fastopt/base.py",
        "{name: _copy(value) for name, value in entry.items()}",
        "dict(entry)",
        ("tests/test_optimizers.py",),
        only="plain_and_a_copy",
    ),
    Mutant(
        "a count without its states is loaded",
        "fastopt/base.py",
        "if step and name not in given and name in (*counts, *self._family.kept):",
        "if step and name not in given and name in counts:",
        ("tests/test_errors_state_dicts.py",),
        only="accumulator or states_that_do_not_fit",
    ),
    Mutant(
        "a schedule is asked for the step after",
        "fastopt/step/group.py",
        'numbers_at(self.entries["step"] + ahead, self.schedules)}',
        'numbers_at(self.entries["step"] + ahead + 1, self.schedules)}',
        ("tests/test_optimizers.py",),
        only="schedule",
    ),
    Mutant(
        "a number does not end its schedule",
        "fastopt/step/group.py",
        "for name, schedule in self.schedules.items() if name not in given}",
        "for name, schedule in self.schedules.items()}",
        ("tests/test_optimizers.py",),
        only="ends_a_schedule",
    ),
    Mutant(
        "the first gradient is dampened",
        "fastopt/rules.py",
        'damping = 1.0 if first else 1.0 - options["dampening"]',
        'damping = 1.0 - options["dampening"]',
        ("tests/test_rules.py",),
        only="trajectories and momentum",
    ),
    Mutant(
        "AdamW's decay is not multiplied by the rate",
        "fastopt/rules.py",
        '*adams, 1.0 - options["lr"] * weight_decay',
        "*adams, 1.0 - weight_decay",
        ("tests/test_rules.py",),
        only="trajectories and adamw",
    ),
    Mutant(
        "AdaGrad's rate decays from the first step on",
        "fastopt/rules.py",
        '(1.0 + (step - 1) * options["lr_decay"])',
        '(1.0 + step * options["lr_decay"])',
        ("tests/test_rules.py",),
        only="trajectories and adagrad",
    ),
    Mutant(
        "Nesterov goes with a dampening",
        "fastopt/rules.py",
        'if options["momentum"] == 0 or options["dampening"] != 0:',
        'if options["momentum"] == 0:',
        ("tests/test_errors_options.py",),
        only="nesterov",
    ),
    Mutant(
        "AdaGrad's decaying rate passes for one that stays",
        "fastopt/rules.py",
        '    moves=lambda options: bool(options["lr_decay"] != 0),\n',
        "",
        ("tests/test_rules.py",),
        only="trajectories and adagrad",
    ),
    Mutant(
        "Adam's averages have each other's names",
        "fastopt/rules.py",
        '    ("exp_avg", "exp_avg_sq"),\n    (*OF_SGD',
        '    ("exp_avg_sq", "exp_avg"),\n    (*OF_SGD',
        ("tests/test_old_checkpoints.py", "tests/test_torch.py"),
    ),
    Mutant(
        "weight decay can be no schedule",
        "fastopt/rules.py",
        '        scheduled="",\n        of=',
        "        of=",
        ("tests/test_docstrings.py",),
        only="those_of_the_signature",
    ),
    Mutant(
        "a docstring forgets what is special",
        "fastopt/faces.py",
        "self.also.get(name), special.get(name))",
        "self.also.get(name))",
        ("tests/test_docstrings.py",),
        only="special",
    ),
    Mutant(
        "a plateau lowers the rate a metric early",
        "fastopt/plateau.py",
        'if self.bad > self._options["patience"]:',
        'if self.bad >= self._options["patience"]:',
        ("tests/test_plateau.py",),
    ),
    Mutant(
        "a plateau goes on counting after a drop",
        "fastopt/plateau.py",
        'self.cooling, self.bad = self._options["cooldown"], 0',
        'self.cooling = self._options["cooldown"]',
        ("tests/test_plateau.py",),
    ),
    Mutant(
        "a single call takes the table of another size",
        "fastopt/step/cpu.py",
        "key = rule.name, dtype, size\n",
        "key = rule.name, dtype\n",
        ("tests/test_rules.py",),
        only="fused_calls",
    ),
)

# How arrays lie, how they are given, and what commands leave behind.
MEMORY = (
    Mutant(
        "the last chunk goes beyond its tensor",
        "fastopt/step/chunks.py",
        'np.minimum(np.repeat(size, counts) - chunks["offset"], elements)',
        "elements",
        ("tests/test_layouts.py",),
        only="chunks_cover",
    ),
    Mutant(
        "the last tile goes beyond its tensor",
        "fastopt/step/chunks.py",
        "np.minimum(strides.shape[across] - starts[across], steps[across]).ravel()",
        "steps[across]",
        ("tests/test_layouts.py",),
        only="tiles_cover",
    ),
    Mutant(
        "axes are merged by the wrong length",
        "fastopt/step/chunks.py",
        "if shape and grad[-1] == stride * length:",
        "if shape and grad[-1] == stride * shape[-1]:",
        ("tests/test_layouts.py",),
    ),
    Mutant(
        "an axis that runs backwards is the fastest",
        "fastopt/step/memory.py",
        "-abs(array.strides[axis]))",
        "-array.strides[axis])",
        ("tests/test_layouts.py",),
        only="any_parameter",
    ),
    Mutant(
        "a gradient that lies as the parameter again keeps its tiles",
        "fastopt/step/launch.py",
        "if strided != self.strided:",
        "if self.strided is None or (strided and strided != self.strided):",
        ("tests/test_layouts.py", "tests/test_torch_layouts.py", "tests/test_optimizers.py"),
    ),
    Mutant(
        "an array's last element may overlap another",
        "fastopt/step/memory.py",
        "return start, end + array.itemsize",
        "return start, end",
        ("tests/test_errors_parameters.py",),
        only="overlap",
    ),
    Mutant(
        "gradients pair by a dict's order",
        "fastopt/containers.py",
        "return [grads[name] for name in self.names]",
        "return list(grads.values())",
        ("tests/test_nested.py", "tests/test_optimizers.py"),
    ),
    Mutant(
        "a missing container is one missing gradient",
        "fastopt/containers.py",
        "out += [None] * inner.count",
        "out.append(None)",
        ("tests/test_nested.py",),
    ),
    Mutant(
        "paths are the wrong way round",
        "fastopt/containers.py",
        '".".join([text] if path is None else [path, text])',
        '".".join([text] if path is None else [text, path])',
        ("tests/test_nested.py",),
        only="paths",
    ),
    Mutant(
        "a closed pipe is an error",
        "fastopt/cli.py",
        "status = 141",
        "status = 1",
        ("tests/test_commands.py",),
        only="nobody_reads",
    ),
    Mutant(
        "an interrupt is an error",
        "fastopt/cli.py",
        "status = 130",
        "status = 1",
        ("tests/test_cli.py", "tests/test_commands.py"),
        only="interrupt",
    ),
    Mutant(
        "an experiment of several fails silently",
        "fastopt/cli.py",
        "return max([attempt(name, arguments) for name in arguments.names])",
        "return min([attempt(name, arguments) for name in arguments.names])",
        ("tests/test_lab.py",),
        only="all_experiments",
    ),
    Mutant(
        "half a file stays beside",
        "fastopt/files.py",
        "        beside.unlink(missing_ok=True)",
        "        pass",
        ("tests/test_commands.py",),
        only="replaced",
    ),
    Mutant(
        "a file takes a link's place",
        "fastopt/files.py",
        "    path = path.resolve()  # a symbolic link stays a link\n",
        "",
        ("tests/test_commands.py",),
        only="replaced",
    ),
)

# The step in PyTorch.
TORCH = (
    Mutant(
        "gradients are multiplied by the scale",
        "fastopt/torch/base.py",
        "1.0 if grad_scale is None else 1.0 / float(grad_scale)",
        "1.0 if grad_scale is None else float(grad_scale)",
        ("tests/test_torch_scaled_losses.py",),
        only="scaled_losses",
    ),
    Mutant(
        "a step is taken though gradients are infinite",
        "fastopt/torch/base.py",
        "        elif found_inf is None or float(found_inf) == 0:\n",
        "        else:\n",
        ("tests/test_torch_scaled_losses.py",),
        only="overflows",
    ),
    Mutant(
        "a closure computes no gradients",
        "fastopt/torch/base.py",
        "            with torch.enable_grad():\n",
        "            with torch.no_grad():\n",
        ("tests/test_torch_hooks.py",),
        only="closures",
    ),
    Mutant(
        "a wrapper's step does not see what GradScaler has left with it",
        "fastopt/torch/base.py",
        'getattr(self, "found_inf", None), getattr(self, "grad_scale", None)',
        "None, None",
        ("tests/test_torch_clients.py",),
        only="wrapper",
    ),
    Mutant(
        "a group that was refused stays",
        "fastopt/torch/base.py",
        "                    self.param_groups.pop()\n",
        "",
        ("tests/test_torch_frozen.py",),
        only="cannot_be_updated",
    ),
    Mutant(
        "a load that fails leaves half of it",
        "fastopt/torch/base.py",
        "            self.__dict__.update(before)\n",
        "",
        ("tests/test_torch_state.py",),
        only="not_loaded",
    ),
    Mutant(
        "each parameter in backward counts a step of its group",
        "fastopt/torch/base.py",
        "counts_groups=False)",
        "counts_groups=True)",
        ("tests/test_torch_backward.py",),
        only="schedules_count",
    ),
    Mutant(
        "a state dict makes AdamW an Adam",
        "fastopt/torch/base.py",
        "**deepcopy(options), **self._fixed}",
        "**deepcopy(options)}",
        ("tests/test_torch_state.py",),
        only="adamw_stays",
    ),
    Mutant(
        "a step in torch keeps its gradients",
        "fastopt/torch/base.py",
        "                if self._stepper is not None:\n                    self._stepper.watch.release()\n",
        "                pass\n",
        ("tests/test_torch_watch.py",),
        only="let_go",
    ),
    Mutant(
        "GradScaler unscales though the step does",
        "fastopt/torch/base.py",
        '        if self.defaults.get("fused"):\n            return True\n',
        "",
        ("tests/test_torch_clients.py", "tests/test_torch_scaled_losses.py"),
        only="unscale",
    ),
    Mutant(
        "a frozen parameter is taken",
        "fastopt/backends/torch/stepper.py",
        "return param.requires_grad or param.grad is not None",
        "return True",
        ("tests/test_torch_frozen.py",),
    ),
    Mutant(
        "a gradient may overlap a parameter",
        "fastopt/backends/gradients.py",
        "if (other := extents.overlapping(array)) is not None:",
        "if (other := extents.overlapping(array)) is not None and False:",
        ("tests/test_torch_refusals.py",),
        only="gradients_in_memory",
    ),
    Mutant(
        "sparse gradients are kept",
        "fastopt/backends/torch/gradients.py",
        "self.held, self.sparse = [], {}",
        "self.held = []",
        ("tests/test_torch_watch.py",),
        only="let_go",
    ),
    Mutant(
        "a parameter without a gradient counts",
        "fastopt/backends/torch/stepper.py",
        "counts.count(self._part.which, self.clock.carried)",
        "counts.count(slice(None), self.clock.carried)",
        ("tests/test_torch.py", "tests/test_torch_parity.py", "tests/test_torch_bugs.py"),
        only="late",
    ),
    Mutant(
        "autograd hears nothing of the write",
        "fastopt/backends/torch/stepper.py",
        "        increment_version(part.written)\n",
        "",
        ("tests/test_torch_autograd.py",),
        only="autograd_notices",
    ),
    Mutant(
        "states of half precision are as rough",
        "fastopt/backends/torch/memory.py",
        "else getattr(torch, UPDATED[tensor.dtype].real_name)",
        "else tensor.dtype",
        ("tests/test_torch_parity.py",),
        only="half_precision_has",
    ),
    Mutant(
        "a complex accumulator begins real",
        "fastopt/backends/torch/parameter.py",
        "fill = complex(value, value)",
        "fill = complex(value, 0.0)",
        ("tests/test_torch_parity.py", "tests/test_torch_bugs.py", "tests/test_torch.py"),
        only="complex or accumulator",
    ),
    Mutant(
        "an accumulator's count comes last",
        "fastopt/backends/torch/parameter.py",
        "self.state.update({**counts, **others})",
        "self.state.update({**others, **counts})",
        ("tests/test_torch_state.py", "tests/test_torch_groups.py", "tests/test_torch_refusals.py"),
        only="form or from_the_start or begin",
    ),
    Mutant(
        "sparse rows forget the scale",
        "fastopt/step/clock.py",
        "return factor * scale, *row",
        "return factor, *row",
        ("tests/test_torch_autograd.py", "tests/test_torch_scaled_losses.py", "tests/test_torch_scaler.py"),
        only="sparse",
    ),
    Mutant(
        "sparse gradients go with weight decay",
        "fastopt/backends/torch/sparse.py",
        ' or parameter.group.upcoming["weight_decay"] != 0:',
        ":",
        ("tests/test_torch_sparse.py",),
        only="cannot_be_combined",
    ),
    Mutant(
        "sparse rows do not count",
        "fastopt/step/clock.py",
        "        parameter.step += 1\n",
        "        parameter.step = parameter.step or 1\n",
        ("tests/test_torch_sparse.py",),
        only="sparse or embedding",
    ),
    Mutant(
        "a gradient stays after its update in backward",
        "fastopt/torch/backward.py",
        "        param.grad = None\n",
        "",
        ("tests/test_torch_backward.py",),
    ),
    Mutant(
        "a broken-off pass is not counted",
        "fastopt/torch/backward.py",
        "                self._end_pass()\n            if not self._stepped:",
        "                self._stepped.clear()\n            if not self._stepped:",
        ("tests/test_torch_backward.py",),
        only="broken_off or schedules_count",
    ),
    Mutant(
        "a scheduler starts from the rate of the schedule's first step",
        "fastopt/torch/live.py",
        'super().__setitem__("lr", base)',
        "pass",
        ("tests/test_torch_schedulers.py",),
    ),
    Mutant(
        "a schedule goes on over a rate that was assigned",
        "fastopt/torch/groups.py",
        "if self._found(name) is self.seen[name]:  # else",
        "if self.seen:  # else",
        ("tests/test_torch_scaler.py", "tests/test_torch_groups.py"),
        only="schedule or assigned",
    ),
    Mutant(
        "a scheduler of torch is a step ahead",
        "fastopt/backends/torch/scheduler.py",
        "[self.schedule(self.last_epoch)]",
        "[self.schedule(self.last_epoch + 1)]",
        ("tests/test_torch.py",),
        only="scheduler",
    ),
    Mutant(
        "the host skips what it should take",
        "fastopt/backends/torch/device.py",
        "bool(found_inf != 0)",
        "bool(found_inf == 0)",
        ("tests/test_torch_scaler.py", "tests/test_torch_gpu.py"),
        only="sparse or both",
    ),
    Mutant(
        "GradScaler meets float16 without a word",
        "fastopt/torch/amp.py",
        "if param.dtype is torch.float16 and param.grad is not None:",
        "if param.dtype is torch.bfloat16 and param.grad is not None:",
        ("tests/test_torch_clients.py",),
        only="says_so",
    ),
)

MUTANTS = (*NUMBA, *EXTENSION, *CPP, *CUDA, *STEP, *MEMORY, *TORCH)
