from sqlmodel import Field, SQLModel


class EntryCreate(SQLModel):
    author: str = Field(max_length=80)
    text: str = Field(max_length=2000)


class Entry(EntryCreate, table=True):
    id: int | None = Field(default=None, primary_key=True)
