"""The gallery: what trained runs make of the first examples of their test split, as pictures, sounds and texts.

    python -m benchmarks.gallery runs/contrastive runs/captioning --out docs/gallery

writes ``README.md`` (GitHub shows it), ``index.html`` (where the sounds play), ``strip.png`` (one picture of all
kinds of runs) and the folder ``files``. A run is used through `xmodal_jax.inference`, by functions whose code stands on
the page. Nothing is selected: the examples are the first ones of the test split, the noise has seed 0.

`kinds.KINDS` has an entry for each kind of run. The sections of other kinds of runs stay as they are on the page
(``gallery.json`` holds them), so that one run can be shown anew without the others.
"""

from benchmarks.gallery.examples import read_test_examples

__all__ = ["read_test_examples"]
