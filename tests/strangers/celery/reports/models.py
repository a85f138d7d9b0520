from sqlalchemy import String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from reports.config import DATABASE_URI

engine = create_engine(DATABASE_URI, pool_size=2, max_overflow=0)
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Report(Base):
    __tablename__ = "report"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    words: Mapped[int]
