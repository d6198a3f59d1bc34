"""pleas-lightning: several fine-tuned vision networks become one."""
