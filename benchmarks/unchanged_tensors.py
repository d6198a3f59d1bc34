"""What ``unchanged.py`` runs beside a checkout's ``project``: students as plain tensors, and logits of random pictures.

    PYTHONPATH=CHECKOUT python benchmarks/unchanged_tensors.py CHECKOUT IMAGE_SIZE FOLDER STUDENT...

Writes ``<student>.safetensors`` for every file into the folder: each entry of the state dict of
``project.load_student(file)``, with ``weights.`` before its name, and ``logits``.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import project


def main() -> None:
    """Write the files that the arguments ask for."""
    checkout, image_size, folder, *students = sys.argv[1:]
    if not Path(project.__file__).resolve().is_relative_to(Path(checkout).resolve()):
        sys.exit(f"project is {project.__file__}, which is not of the checkout {checkout}.")
    pictures = torch.randn(16, 3, int(image_size), int(image_size), generator=torch.Generator().manual_seed(0))
    for student in map(Path, students):
        network = project.load_student(student)
        tensors = {f"weights.{name}": tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
        with torch.no_grad():
            logits = network(pictures)
        save_file({**tensors, "logits": logits.contiguous()}, Path(folder) / f"{student.stem}.safetensors")


if __name__ == "__main__":
    main()
