"""A training that is stopped, as by Ctrl-C, behind its first checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager

from minillm.training import trainer


@contextmanager
def stopped_behind_a_checkpoint(monkeypatch) -> Iterator[None]:
    """Inside, each Trainer writes its checkpoint after the first step and is then interrupted."""
    save = trainer.Trainer.save

    def stopped(self, path):
        save(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
        patch.setattr(trainer.Trainer, "save", stopped)
        yield
