"""What rows of the catalogue cannot say: functions that they name under `quirks` (see PipelineType), a module a family.

`load` functions take the pipeline. `call` functions take the pipeline and its call's arguments, generator and callback
among them, and return what the pipeline would.
"""
