"""Control of the step size by the changes of the loss after earlier steps, for ``clip="auto"``."""
