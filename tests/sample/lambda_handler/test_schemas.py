"""The function's msgspec schemas are those of the web services, which are pydantic's."""

import msgspec
import pytest
from pydantic import TypeAdapter

import articles.schemas
import lambda_handler.schemas

NAMES = (
    *("NewArticle", "ArticleUpdate", "NewDocument", "ArticleSummary", "ArticleOut", "Page"),
    *("DocumentOut", "ChunkOut", "DocumentWithChunks", "ArticleId", "DocumentId", "Limit"),
)


def plain(schema, definitions):
    """Return a schema without names and references, in one order."""
    if "$ref" in schema:
        return plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    kept = {k: v for k, v in schema.items() if k not in ("title", "description", "$defs")}
    if "properties" in kept:
        kept.pop("anyOf", None)  # which members go together; a struct's schema cannot say so
        kept["properties"] = {k: plain(v, definitions) for k, v in kept["properties"].items()}
        kept["required"] = sorted(kept["required"])
    if "items" in kept:
        kept["items"] = plain(kept["items"], definitions)
    if "anyOf" in kept:
        kept["anyOf"] = sorted((plain(each, definitions) for each in kept["anyOf"]), key=repr)
    if "pattern" in kept:
        # Python's own regular expressions need \\Z for the $ of JSON Schema.
        kept["pattern"] = kept["pattern"].replace(r"\Z", "$")
    return dict(sorted(kept.items()))


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_the_same_with_msgspec_and_pydantic(name):
    """Whoever changes one has to change the other."""
    ours = msgspec.json.schema(getattr(lambda_handler.schemas, name))
    theirs = TypeAdapter(getattr(articles.schemas, name)).json_schema()
    assert plain(ours, ours.get("$defs")) == plain(theirs, theirs.get("$defs"))


def test_every_schema_is_compared():
    """A class that is added has to be added here, too."""
    classes = {
        name
        for name, each in vars(lambda_handler.schemas).items()
        if isinstance(each, type) and issubclass(each, msgspec.Struct)
    }
    assert classes - {"Struct"} <= set(NAMES)


def test_an_id_ends_where_its_text_ends():
    """A line break after it is not part of an id."""
    for text in ("a\n", "\na"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, lambda_handler.schemas.DocumentId)
