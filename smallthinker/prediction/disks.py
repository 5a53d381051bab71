"""The disk that a prediction is made for: a named profile, a store's own probe, or a quick look at a folder's disk."""

from __future__ import annotations

from pathlib import Path

from smallthinker.expert_store.device.device_probe import probe_device
from smallthinker.expert_store.device.probe import profile_of
from smallthinker.expert_store.device.probe_file import probe_file
from smallthinker.expert_store.device.storage_profile import load_profile
from smallthinker.expert_store.progress import Progress
from smallthinker.expert_store.store import Store
from smallthinker.prediction.disk_model import DiskModel
from smallthinker.prediction.needs import PlannedModel

_QUICK_SEC = 2.0


def find_disk(
    model: PlannedModel, profile: str | None, writing: Progress, measuring: Progress
) -> tuple[DiskModel, str]:
    """The disk, and where its figures come from.

    profile: a bundled one's name or a file; None measures what the model lies on, or the current folder's disk: two
    seconds, and a few more where a file must be written first. Raises ProfileError, StoreReadError.
    """
    if profile is not None:
        storage = load_profile(profile)
        kind = "figures of its class" if storage.scope == "class" else "measured"
        return DiskModel.of_device(storage, model.record_bytes), f"profile {storage.name} ({kind}): {storage.summary}"
    if model.is_store and model.folder is not None:
        with Store.open(model.folder) as store:
            found = profile_of(store)
        if found.measured:
            return DiskModel.of_probe(found, "this disk"), "the probe that is kept beside the store"
    where = model.folder or Path()
    where = where if where.is_dir() else where.parent
    with probe_file(where, writing) as file:
        report = probe_device(file, "this disk", _QUICK_SEC, measuring)
    place = "the current folder's disk" if model.folder is None else "the disk behind the model"
    return DiskModel.of_device(report.profile, model.record_bytes), f"a quick probe of {place}"
