"""The training loop: the trainer takes and saves steps, the monitor logs and checks them."""

from __future__ import annotations

from nolabel.engine.monitor.monitor import Monitor
from nolabel.engine.run_folder import STOPPED, note_stop
from nolabel.engine.trainer import Trainer
from nolabel.errors import GuardStop, Stopped, command


def train(trainer: Trainer, monitor: Monitor) -> None:
    """The training loop, from the trainer's start step to the last.

    Under torchrun all ranks run it together, each on its part of every batch.

    Raises:
        GuardStop: the features collapsed (`--on-collapse stop`), the features of --init were being
            destroyed (`--init-guard rollback`), or several steps in a row were not finite.
        Stopped: stopped on request; the run is saved and can be resumed.
    """
    run, step = trainer.run, trainer.start
    every = run.settings.checkpoint_every
    with trainer.heartbeat, trainer.stop, monitor:
        if trainer.first:
            (run.folder / STOPPED).unlink(missing_ok=True)
        monitor.snapshot(trainer.start)
        while step < trainer.total:
            clock, done = trainer.clock(step), step + 1
            line_due = monitor.line_due(done)
            result = trainer.train_step(clock, measure=line_due)
            if line_due and trainer.correct_length(done):
                monitor.set_length(trainer.total)
            total = trainer.total
            alarms = monitor.after_step(clock, result)
            if alarms.collapsed and run.settings.on_collapse == "stop":
                trainer.save(done, final=True)
                raise GuardStop(
                    f"Stopped at step {done} of {total}; everything is saved. {alarms.collapsed}"
                )
            if result.stop and done < total:
                if trainer.first:
                    note_stop(run.folder, done)
                trainer.save(done, final=True)
                raise Stopped(
                    f"Stopped at step {done} of {total}; everything is saved. Continue with "
                    f"`{command('nolabel', 'resume', str(run.folder))}`."
                )
            if done < total and (result.save or (every and done % every == 0)):
                trainer.save(done)
            step = done
        trainer.save(step, final=True)
        monitor.keep_best()
        trainer.feed.close()
