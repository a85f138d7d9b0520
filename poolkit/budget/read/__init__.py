"""Files as they are written: YAML and JSON documents, parameters, values.

In come paths. Out go documents with the line of every value, and the parameters that an
environment's file or the command line gives. Nothing here depends on the kind of a document.
"""
