"""One session of training: from claimed run folders to their records. A run is a program of one trial."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.config.labels import tags
from experiments.records import claims, run_folder, run_record
from experiments.session import export
from experiments.session.experiment import Experiment
from experiments.session.fit import with_sizes
from experiments.session.trial_group import TrialGroup
from experiments.session.update import update_spectrum
from experiments.session.watch import Watch
from experiments.tables import figures
from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError, memory_named
from lowrank_jax.data.pipeline import check_library
from lowrank_jax.train import loop, tracking
from lowrank_jax.train.best import Best, abstract_best, keeps_best
from lowrank_jax.train.compiled import memory
from lowrank_jax.train.evaluations import Evaluator


@dataclasses.dataclass(frozen=True)
class Run:
    """A run by name, its plain config, its folder and the claim on it."""

    name: str
    plain: dict
    folder: Path
    claim: claims.Claim


@dataclasses.dataclass
class Session:
    """A program of one or several runs that was built on shapes, and where it leaves what.

    Attributes:
      program: an `Experiment`, or a `TrialGroup` with a trial for each run.
      runs: claimed.
      place: folder of the checkpoints, which all runs share.
      identity: what must be equal where a checkpoint is resumed; the base's fingerprint joins it.
      started: time.time() when the program began.
      more: further keys of every record.
    """

    program: Experiment | TrialGroup
    runs: Sequence[Run]
    place: Path
    identity: dict[str, Any]
    started: float
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    compiled: Any = None
    merge: Any = None
    compile_seconds: float = 0.0
    evaluators: Sequence[Evaluator] = ()
    watch: Watch | None = None

    def compile(self) -> None:
        """Prepares the evaluations, compiles the step, and makes sure that it fits, before anything is written.

        Raises:
          UserError: a library is missing, the task has no evaluation of that type, or the step needs more memory than
            its device has.
        """
        check_library()
        observed = bool(self.program.lead.config.tracking.observe_every)
        self.watch = Watch(self.program) if observed else None
        self.evaluators = [*(self.watch.evaluators() if self.watch else []), *self.program.evaluators()]
        begin = time.perf_counter()
        with memory_named("compiling the step"):
            self.compiled = self.program.compile(ahead=True)
            self.merge = self.program.compile_merge()
        self.compile_seconds = time.perf_counter() - begin
        with with_sizes(self.program.lead.config, self.program.lead.task):
            memory.check_fits(self.compiled)
            if self.merge is not None:
                memory.check_fits(self.merge, what="merge")

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of an earlier session, for --fresh. Call it before the run folders are opened.

        In the other order a program killed between the two would leave new runs beside old checkpoints. An error here
        ends the session.

        Raises:
          UserError: their folder is a link.
        """
        folder = self.place / run_folder.CHECKPOINTS
        run_folder.check_no_link(self.place, fresh=True)
        run_folder.check_no_link(folder, fresh=True)
        if folder.exists():
            shutil.rmtree(folder)

    def train(self) -> tuple[loop.Outcome, list[dict]]:
        """Trains to the end, a signal or until no run is left; returns how it ended, and on process 0 the records."""
        program, lead = self.program, self.program.lead
        with memory_named("loading the weights"):
            state, frozen, fingerprint = program.load()
        batches, first, seconds, unmade = program.batches(), 0, 0.0, ()
        folder, keep = self.place / run_folder.CHECKPOINTS, lead.config.checkpoint.keep
        changes = self.merge is not None  # the frozen tree, which is then saved too
        best = Best(state, len(self.runs), frozen if changes else None) if keeps_best(lead.config.evals) else None
        with (
            Checkpoints(folder, keep, {"base": fingerprint, **self.identity}) as checkpoints,
            contextlib.ExitStack() as open_files,
        ):
            open_files.callback(batches.close)
            if checkpoints.latest():
                rest = program.abstract_state._asdict()
                if best:
                    held = lead.abstract_frozen if changes else None
                    rest["best"] = abstract_best(rest["trainable"], len(self.runs), held)
                if changes:
                    rest["frozen"], frozen = lead.abstract_frozen, None  # the base need not fit twice
                trainable, rest, cursor, first = checkpoints.restore(None, rest.pop("trainable"), rest, mend=True)
                frozen = rest.pop("frozen", frozen)
                if best:
                    best.restore(rest.pop("best"))
                state, seconds = state._replace(trainable=trainable, **rest), cursor["train_seconds"]
                unmade = cursor.get(loop.UNMADE, ())
                batches.set_state(cursor.get("batches", {"batches": first}))  # earlier trials kept no cursor
                if jax.process_index() == 0:
                    last = max(one.config.train.last_step for one in program.each)
                    print(f"resuming after step {first} of {last}", flush=True)
            more = lambda: {"more": self.watch.more(first, seconds)} if self.watch else {}  # noqa: E731
            trackers = [
                open_files.enter_context(
                    tracking.Tracker(run.folder, run.name, run.plain, tagged, first, kind, **more())
                )
                for run, one in zip(self.runs, program.each, strict=True)
                for tagged in [dataclasses.replace(one.config.tracking, tags=tags(run.plain))]
                for kind in [(run.plain.get("labels") or {}).get("method")]
            ]
            if jax.process_index() == 0:
                each = ", of one trial" if len(self.runs) > 1 else ""
                print(f"tok/s: {lead.form.counted} in a second of training{each}", flush=True)
            job = loop.Job(
                state=state,
                frozen=frozen,
                step=program.step_function(self.compiled),
                batches=self.watch.stream(batches) if self.watch else batches,
                place=program.place,
                evaluators=[dataclasses.replace(one, evaluate=_named(one.evaluate)) for one in self.evaluators],
                configs=[one.config.train for one in program.each],
                checkpoints=checkpoints,
                checkpoint_every=lead.config.checkpoint.every,
                trackers=trackers,
                profile_folder=str(self.place / "profile"),
                first=first,
                train_seconds=seconds,
                unmade=unmade,
                renew=self._renew,
                best=best,
                merge=self.merge,
                merges=lead.config.restart.due,
            )
            del frozen  # merges replace it
            with memory_named("a training step"):
                outcome = loop.fit(job)
            with memory_named("exporting"):
                records = [self._record(i, outcome, fingerprint, trackers[i], best) for i in range(len(self.runs))]
        return outcome, [record for record in records if record]

    def _record(
        self,
        index: int,
        outcome: loop.Outcome,
        fingerprint: str,
        tracker: tracking.Tracker,
        best: Best | None,
    ) -> dict | None:
        """Exports run `index` (its best weights, where it keeps them) if it finished, and writes its result.json."""
        run, one = self.runs[index], self.program.each[index]
        status, message = outcome.statuses[index], outcome.messages[index]
        spectra: dict[str, Any] = {}
        if status == "finished":
            last = (outcome.state, outcome.frozen)
            weights = self.program.trial(*(last if best is None else best.weights(*last)), index)
            lines = export.export_run(run.folder, one, *weights, fingerprint)
            if one.config.export.spectrum:
                spectra = {"update_spectrum": update_spectrum(one, *weights)}
            if (
                jax.process_index() == 0 and index == 0
            ):  # trials differ in folder alone: the first one's lines are enough
                print("\n".join(lines), flush=True)
        if jax.process_index() != 0:
            return None
        result = run_folder.finish_run(
            run.folder, run.name, run.plain, status, one.parameters, self.started, outcome.train_seconds, message,
            compile_seconds=self.compile_seconds, seq_len=one.data.seq_len, base=one.base_record(fingerprint),
            trained=one.trained, **({"best": best.record(index)} if best else {}), **self.program.lead.record_notes(),
            **run_folder.data_of(run.folder), **spectra, **self.more,
        )  # fmt: skip
        if status in run_folder.ENDED:
            run.claim.record(result)
        if result["losses"]:
            self._draw(result, run.folder, tracker)
        shown = {"status": status, "train_seconds": result["train_seconds"], **one.parameters}
        tracker.summary({**shown, **run_record.last_evaluation(result)})
        return result

    def _draw(self, result: dict, folder: Path, tracker: Any) -> None:
        try:
            tracker.image("curves", figures.draw_run(result, folder / "curves.png"))
        except UserError as error:  # the run and its record are whole without it
            print(f"{result['name']}: no curves.png; {error}")

    def _renew(self) -> None:
        for run in self.runs:
            run.claim.renew()


def _named(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """An evaluation whose lack of memory is named."""

    def named(*arguments: Any) -> Any:
        with memory_named("an evaluation"):
            return evaluate(*arguments)

    return named
