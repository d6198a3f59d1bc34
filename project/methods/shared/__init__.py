"""What several merging methods use."""

from project.methods.shared.arithmetic import Arithmetic
from project.methods.shared.learned import Learned

__all__ = ["Arithmetic", "Learned"]
