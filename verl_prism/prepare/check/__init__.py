"""Check every row of data sets, and list all that is wrong.

The check of a stage (`--check`) stops at the first mistake and decodes no pixels of a JPEG. This
command reads on, decodes every image, and reports each broken row with its file, number, id and
reason: columns, messages, placeholders, images, responses, gold answers, lengths in tokens,
duplicates within a split, and rows of a later split whose images (or whose question, if they have
no image) are in an earlier one. The exit code is 1 if anything is wrong.

A mistake is a problem; what is unusual but works is a note, such as a CMYK image or a student
response that is not in the format. `report` is a folder for problems.jsonl, which lists both, and
lengths.png. `fix` writes a copy without the broken rows, and lists these in
<file>.rejects.jsonl; it changes nothing in the rows that it keeps.

  python -m verl_prism.data check source=train.parquet report=checked
  python -m verl_prism.data check 'source={train: train.parquet, heldout: heldout.parquet}' \\
      model=Qwen/Qwen3-VL-4B-Instruct max_prompt_tokens=2048 report=checked fix=clean
"""

from verl_prism.prepare.check.run import run
from verl_prism.prepare.check.settings import Settings

__all__ = ["Settings", "run"]
