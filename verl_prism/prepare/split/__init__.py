"""Divide rows into splits that share no image, and no question if a row has no image.

Rows that share an image go to the same split, and so do rows that are linked through other rows;
rows without an image do if they ask the same question. Pixels are compared, so that a copy of an
image in another format or with other metadata counts as the same.

The shares in `splits` are probabilities: each group of rows is drawn by a hash of its content and
`seed`. The result does not depend on the order of the rows. When rows are added, a row keeps its
split, unless a new row links its images to other images. `exclude` leaves out rows that share an
image, or a question without images, with other files, such as benchmarks; they are listed in
<output>/rejects.jsonl.

  python -m verl_prism.data split source=all.parquet 'splits={train: 0.9, heldout: 0.1}' output=data
  python -m verl_prism.data split source=all.parquet 'splits={sft: 0.8, rl: 0.19, heldout: 0.01}' \\
      exclude=benchmark.parquet output=data seed=3
"""

from verl_prism.prepare.split.run import Settings, run

__all__ = ["Settings", "run"]
