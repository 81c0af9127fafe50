# needs: nothing
"""A collection on disk: add documents, search them exactly, filter, change, delete."""

import torch

import colbert_fast as cf

torch.manual_seed(0)


def embed(words: str) -> torch.Tensor:
    """Stand in for an encoder: one vector for each word, always the same. docs/encoder.md shows a real one."""
    seeds = [sum(ord(letter) * 31**place for place, letter in enumerate(word)) for word in words.lower().split()]
    rows = [torch.randn(128, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


texts = {
    "birds": "Birds fly with wings that push the air down",
    "fish": "Fish swim by bending their bodies",
    "planes": "The engines of planes push the air back",
}

with cf.Collection("animals") as collection:  # a folder; it is made if it is not there
    collection.add(
        list(texts), [embed(text) for text in texts.values()], [{"words": len(t.split())} for t in texts.values()]
    )
    found = collection.topk([embed("what can push the air")], k=2)
    for name, score in zip(found.ids[0], found.scores[0], strict=True):
        print(f"{score:.2f}  {name}: {texts[name]}")
    print(f"certified: {found.certified}, documents read exactly: {found.read.tolist()}")

    scores, ids = collection.topk([embed("what can push the air")], k=1, where="words < ?", parameters=[8])
    print(f"the best short one: {ids[0][0]}")

    collection.add(["fish"], [embed("Fish push the water aside")], [{"words": 5}], replace=True)
    collection.delete(["planes"])
    collection.compact()

# Other processes find what was added.
with cf.Collection("animals", read_only=True) as collection:
    print(f"{len(collection)} documents: {', '.join(collection.ids())}; {collection.metadata('fish')}")
    scores, ids = collection.topk([embed("push the water")], k=1)
    print(f"the best one: {ids[0][0]}")
