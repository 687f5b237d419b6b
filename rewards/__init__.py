"""What is good: verifiers, judges, progress estimators and the way they are called and composed."""

from .. import __version__ as __version__
