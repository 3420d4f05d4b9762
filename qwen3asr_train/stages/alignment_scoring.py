"""Test sets of word times to AAS: as they are, joined, across languages, in noise."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from omegaconf import DictConfig, OmegaConf
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.aligned import AlignmentDataset
from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.augment_join import concatenate
from qwen3asr_train.data.augment_noise import add_noise, coloured_noise
from qwen3asr_train.data.plan import sample_rng
from qwen3asr_train.data.shards import Entry
from qwen3asr_train.data.slots import SlotPrompts, Times
from qwen3asr_train.data.teacher_noise import TeacherNoise
from qwen3asr_train.decoding.alignment import ForcedAligner
from qwen3asr_train.decoding.alignment_long import Spans
from qwen3asr_train.decoding.ctc_alignment import CtcAligner
from qwen3asr_train.errors import DataError, UserError
from qwen3asr_train.evaluation.alignment import AlignedClip, clip_of
from qwen3asr_train.evaluation.report_alignment import AlignmentPicture, AlignmentReport
from qwen3asr_train.models import aut
from qwen3asr_train.models.aligner import Aligner
from qwen3asr_train.models.folder import opening
from qwen3asr_train.stages.scoring import gather_lists, scoring_device, tell_skipped

log = logging.getLogger(__name__)

AS_THEY_ARE = "clips"

COARSE, CTC = "decoding.coarse_model", "evaluation.ctc_model"
"""Fields of the stage that name an AuT."""

_PAUSE_SECONDS = (0.1, 0.6)
_GROUP = 32  # clips held in memory at a time


@dataclass(frozen=True)
class Heard:
    """One test clip as it is aligned."""

    key: str
    language: str | None
    waveform: np.ndarray
    units: list[str]
    times: list[Times]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.waveform) / SAMPLE_RATE


@dataclass(frozen=True)
class Way:
    """How the test clips are heard: joined to ``seconds``, of one language or ``mixed``, with noise
    at ``snr_db``."""

    name: str
    seconds: float = 0.0
    mixed: bool = False
    snr_db: float | None = None


@dataclass
class TestClips:
    """Test samples of ``entries``; what cannot be used is in ``skipped``."""

    entries: Sequence[Entry]
    dataset: AlignmentDataset
    joined_clips: int
    skipped: list[str] = field(default_factory=list)

    def heard(self, way: Way, rank: int = 0, ranks: int = 1) -> Iterator[Heard]:
        """This rank's clips, the same for every model."""
        chosen = [[entry] for entry in self.entries] if not way.seconds else self._joins(way)
        for number, entries in list(enumerate(chosen))[rank::ranks]:
            try:
                samples = [self.dataset.sample(entry) for entry in entries]
                yield self._clip(way, number, entries, samples)
            except DataError as error:
                self.skipped.append(str(error))

    def _clip(self, way: Way, number: int, entries: list[Entry], samples: list) -> Heard:
        key, record, waveform = entries[0].key, samples[0].record, samples[0].waveform
        if way.seconds:
            key = f"{way.name}-{number}"
            parts = [(s.record | ({"language": None} if way.mixed else {}), s.waveform)
                     for s in samples]
            record, waveform = concatenate(parts, sample_rng(0, 0, key), _PAUSE_SECONDS)
        if way.snr_db is not None:
            noise = coloured_noise(len(waveform), sample_rng(0, 0, f"{key}/noise"))
            waveform = add_noise(waveform, way.snr_db, noise)
        return Heard(key, record.get("language"), waveform, *self.dataset.units_of(record))

    def _joins(self, way: Way) -> list[list[Entry]]:
        """Entries of each joined clip: languages in turn, all of a clip's in one unless mixed."""
        rng = sample_rng(0, 0, f"join/{way.name}")
        by_language: dict[str | None, list[Entry]] = {}
        for entry in self.entries:
            by_language.setdefault(entry.language, []).append(entry)
        pools = [by_language[name] for name in sorted(by_language, key=str)]
        joins = []
        for number in range(self.joined_clips):
            room, chosen = way.seconds, []
            while True:
                pool = pools[(len(chosen) if way.mixed else number) % len(pools)]
                entry = pool[int(rng.integers(len(pool)))]
                room -= entry.duration + _PAUSE_SECONDS[1]
                if room < 0 and chosen:
                    break
                chosen.append(entry)
            joins.append(chosen)
        return joins


def ways_of(options: DictConfig) -> list[Way]:
    """The clips as they are, and what ``stage.evaluation`` adds."""
    ways = [Way(AS_THEY_ARE)]
    ways += [Way(f"joined_{seconds:g}s", seconds) for seconds in options.joined_seconds]
    if options.cross_lingual_seconds:
        ways.append(Way("cross_lingual", options.cross_lingual_seconds, mixed=True))
    return ways + [Way(f"snr_{level:g}", snr_db=level) for level in options.snr_db]


def score_aligner(model: Aligner, processor: Qwen3ASRProcessor, entries: list[Entry],
                  config: DictConfig, rank: int = 0, ranks: int = 1) -> AlignmentReport:
    """Align every entry in every way; all ranks share the work and all get every result.

    Figures of the clips as they are come as ``test/aas_ms`` and so on, others as
    ``test/NAME/aas_ms``.
    """
    if not entries:
        raise UserError("the test shards hold no samples")
    options = config.stage.evaluation
    by_ctc = ctc_aligners(config)
    align = forced_aligner(model, processor, config, by_ctc)
    test = TestClips(entries, AlignmentDataset(SlotPrompts(processor, model.config.num_labels)),
                     options.joined_clips)
    aligners = {"": align.spans}
    if CTC in by_ctc:
        aligners["ctc"] = by_ctc[CTC].spans
    report = AlignmentReport(align.prompts.class_seconds)
    for way in ways_of(options):
        for label, spans in aligners.items():
            clips, pictures = _aligned(test, way, spans, rank, ranks,
                                       options.pictures if way.name == AS_THEY_ARE else 0)
            report.add(way.name, label, gather_lists(clips))
            report.pictures += pictures if not label else []
    # the same one comes in several ways
    tell_skipped(sorted(set(gather_lists(test.skipped))), config)
    if TeacherNoise(**config.stage.get("teacher", {})).on:
        report.add(AS_THEY_ARE, "teacher", _teachers(test, config))
    return report


def _aligned(test: TestClips, way: Way, align, rank: int, ranks: int, pictures: int
             ) -> tuple[list[AlignedClip], list[AlignmentPicture]]:
    """Clips of this rank in one way, and pictures of the first of them."""
    found, shown, group = [], [], []

    def flush() -> None:
        spans = align([clip.waveform for clip in group], [clip.units for clip in group])
        for clip, row in zip(group, spans, strict=True):
            if row is None:
                log.warning("%s: too short for its text under CTC, not counted", clip.key)
                continue
            found.append(clip_of(clip.key, clip.language, clip.duration, clip.units, row,
                                 clip.times))
            if len(shown) < pictures:
                shown.append(AlignmentPicture(clip.key, clip.waveform, clip.units, row,
                                              _known(clip.times)))
        group.clear()

    for clip in test.heard(way, rank, ranks):
        group.append(clip)
        if len(group) == _GROUP:
            flush()
    flush()
    return found, shown


def _known(times: list[Times]) -> Spans:
    """Reference spans for the picture: those of which both times are known."""
    return [(a, b) if a is not None and b is not None else None for a, b in times]


def _teachers(test: TestClips, config: DictConfig) -> list[AlignedClip]:
    """The made-up teacher of ``stage.teacher`` on the test clips."""
    noise, clips = TeacherNoise(**config.stage.teacher), []
    for entry in test.entries:
        try:
            sample = test.dataset.sample(entry)
            units, times = test.dataset.units_of(sample.record)
        except DataError:
            continue  # counted where the clips are aligned
        seconds = len(sample.waveform) / SAMPLE_RATE
        noisy = noise.of(sample.record, seconds, config.seed, entry.key)
        clips.append(clip_of(entry.key, entry.language, entry.duration, units,
                             test.dataset.units_of(noisy)[1], times))
    return clips


def forced_aligner(model: Aligner, processor: Qwen3ASRProcessor, config: DictConfig,
                   by_ctc: dict[str, CtcAligner]) -> ForcedAligner:
    """What aligns as ``stage.decoding`` says, with the :func:`ctc_aligners` that it names."""
    options = config.stage.decoding
    coarse = by_ctc.get(COARSE)
    return ForcedAligner(model.to(scoring_device(config)), processor,
                         max_seconds=options.max_seconds, min_seconds=options.min_seconds,
                         batch_seconds=config.data.evaluation_seconds,
                         coarse=coarse and coarse.spans)


def ctc_aligners(config: DictConfig) -> dict[str, CtcAligner]:
    """Field of the stage that names an AuT -> alignment by its CTC; a folder is read once."""
    read: dict[str, CtcAligner] = {}
    named = named_ctc_models(config)
    for name, folder in named.items():
        if folder not in read:
            model, processor = aut.load(folder, config.model.attn_implementation,
                                        field=f"stage.{name}")
            read[folder] = CtcAligner(model.to(scoring_device(config)), processor)
    return {name: read[folder] for name, folder in named.items()}


def named_ctc_models(config: DictConfig) -> dict[str, str]:
    """Field -> folder, of those that are set."""
    named = {name: OmegaConf.select(config.stage, name) for name in (COARSE, CTC)}
    return {name: str(folder) for name, folder in named.items() if folder}


def check_ctc_models(config: DictConfig) -> None:
    """UserError for a named AuT that is not there: known better before training than after."""
    for name, folder in named_ctc_models(config).items():
        with opening(folder, field=f"stage.{name}"):
            pass
