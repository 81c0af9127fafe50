"""For Haystack: a ranker component that keeps the documents with the best late-interaction scores."""

# No postponed annotations here: older releases of Haystack read the types of the sockets from `run` as they are.
from copy import deepcopy
from dataclasses import replace
from typing import Any

from colbert_fast._extras import need

need("colbert_fast.integrations.haystack", "integrations", {"haystack-ai": "2.20"})

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.core.errors import SerializationError
from haystack.utils import ComponentDevice
from haystack.utils.hf import deserialize_hf_model_kwargs, serialize_hf_model_kwargs

from colbert_fast._integers import positive_int
from colbert_fast.integrations._lazy import LazyEncoder


@component
class LateInteractionRanker:
    """Ranks documents by their text with :func:`colbert_fast.rerank`.

    Parameters
    ----------
    model
        An encoder, or the path or name of a checkpoint, which is loaded by `warm_up` or at first use. A pipeline can be
        saved only with a path or a name.
    top_k
        How many documents are kept. None: all.
    normalize
        Scores in 0..1.
    device
        The device of a checkpoint that is loaded here. None: CUDA if there is one, else MPS, else the CPU.
    model_kwargs
        More keyword arguments of `colbert_fast.models.ColBERT` for that checkpoint.
    """

    def __init__(
        self,
        model: Any,
        top_k: int | None = None,
        normalize: bool = False,
        device: ComponentDevice | str | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.device: ComponentDevice | None = _component_device(device)
        self.model_kwargs = model_kwargs
        self.model: LazyEncoder = LazyEncoder.of(model, self.device and self.device.to_torch_str(), model_kwargs)
        self.top_k: int | None = None if top_k is None else positive_int(top_k, "top_k")
        self.normalize = normalize

    def warm_up(self) -> None:
        """Load the checkpoint."""
        self.model.get()

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Return ``{"documents": [...]}``: copies of the best documents, best first, with their scores.

        Of documents with the same id only the first is ranked. ``top_k`` replaces the ranker's own.

        Raises
        ------
        TypeError
            ``query`` is not a str.
        ValueError
            ``top_k`` is less than 1; or the ranker normalizes, and the model's embeddings are no unit vectors.
        """
        documents = list({document.id: document for document in reversed(list(documents))}.values())[::-1]
        texts = [document.content or "" for document in documents]
        k = self.top_k if top_k is None else positive_int(top_k, "top_k")
        return {
            "documents": [replace(documents[i], score=s) for i, s in self.model.rank(query, texts, k, self.normalize)]
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes."""
        if self.model.name is None:
            msg = "an encoder cannot be saved with a pipeline; give the ranker the path or name of its checkpoint"
            raise SerializationError(msg)
        options = deepcopy(self.model_kwargs or {})
        serialize_hf_model_kwargs(options)
        device = self.device and self.device.to_dict()
        settings = {"model": self.model.name, "top_k": self.top_k, "normalize": self.normalize}
        data: dict[str, Any] = default_to_dict(self, **settings, device=device, model_kwargs=options)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LateInteractionRanker":
        """Return the ranker that `to_dict` described."""
        settings = deepcopy(data.get("init_parameters", {}))
        deserialize_hf_model_kwargs(settings.get("model_kwargs") or {})
        if isinstance(settings.get("device"), dict):
            settings["device"] = ComponentDevice.from_dict(settings["device"])
        ranker: LateInteractionRanker = default_from_dict(cls, {**data, "init_parameters": settings})
        return ranker


def _component_device(device: Any) -> Any:
    known = device is None or isinstance(device, ComponentDevice)
    return device if known else ComponentDevice.from_str(str(device))
