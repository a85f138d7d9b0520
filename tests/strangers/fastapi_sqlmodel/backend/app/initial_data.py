from sqlmodel import Session

from app.db import engine
from app.models import Entry


def main() -> None:
    with Session(engine) as session:
        session.add(Entry(author="the owner", text="Welcome"))
        session.commit()


if __name__ == "__main__":
    main()
