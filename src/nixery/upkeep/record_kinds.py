"""Which records can be read, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import TypeAdapter, ValidationError

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest
from nixery.pipeline.batch_records import BATCH, BATCH_CLOSURES, BATCHES, REFERENCES
from nixery.pipeline.build_cache import IMAGES, ImageRecord
from nixery.pipeline.build_history import BUILDS
from nixery.pipeline.build_report import BuildReport
from nixery.pipeline.evaluation_cache import EVALUATED, EVALUATIONS
from nixery.pipeline.layer_publisher import LAYERS, LayerRecord
from nixery.pipeline.package_index import LISTED, PACKAGES
from nixery.pipeline.pin_records import PINS, PinRecord
from nixery.storage.catalogue import REFERRERS, TAGS, TagRecord
from nixery.storage.uses import USES, claimed_together

Check = Callable[[bytes], bool]

_DESCRIPTOR: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


def _readable(read: Callable[[bytes], object]) -> Check:
    def check(content: bytes) -> bool:
        try:
            read(content)
        except (ValidationError, InvalidDigest, KeyError):
            return False
        return True

    return check


def _layer(content: bytes) -> None:
    record = LayerRecord.model_validate_json(content)
    Digest.parse(record.digest)
    Digest.parse(record.diff_id)


# Whether the content of a record is what its kind has.
CHECKS: Mapping[str, Check] = {
    IMAGES: _readable(lambda content: ImageRecord.model_validate_json(content).documents),
    LAYERS: _readable(_layer),
    EVALUATIONS: _readable(EVALUATED.validate_json),
    BUILDS: _readable(BuildReport.model_validate_json),
    PACKAGES: _readable(LISTED.validate_json),
    BATCHES: _readable(BATCH.validate_json),
    BATCH_CLOSURES: _readable(REFERENCES.validate_json),
    PINS: _readable(PinRecord.model_validate_json),
    TAGS: _readable(lambda content: Digest.parse(TagRecord.model_validate_json(content).digest)),
    REFERRERS: _readable(lambda content: Digest.parse(str(_DESCRIPTOR.validate_json(content)["digest"]))),
    USES: lambda content: bool(claimed_together(content)),
}
