"""What commands share: options, changes of recipes and settings, and how a command ends.

`command` runs one: signals, messages and exit status. `options` are those of every command that
trains, `settings` checks a recipe's and a method's changes, `limits` the bounds of their numbers.
It may import training and all below. Begin with `options`.
"""
