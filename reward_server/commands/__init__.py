"""The commands of `motion-reward`: their options, and the function of another module that each of them calls.

A command imports that module only when it runs. So the server starts without torch, and `--help` imports no other
module.
"""
