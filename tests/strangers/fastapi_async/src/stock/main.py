from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from stock.database import Item, get_session

SessionDep = Annotated[AsyncSession, Depends(get_session)]


class ItemIn(BaseModel):
    name: str
    amount: int = 0


class ItemOut(ItemIn):
    model_config = ConfigDict(from_attributes=True)
    id: int


def create_app() -> FastAPI:
    app = FastAPI(title="Stock")

    @app.get("/items")
    async def read_items(session: SessionDep) -> list[ItemOut]:
        found = await session.scalars(select(Item).order_by(Item.id.desc()).limit(20))
        return [ItemOut.model_validate(item) for item in found]

    @app.get("/items/total")
    async def total(session: SessionDep) -> int:
        return await session.scalar(select(func.coalesce(func.sum(Item.amount), 0)))

    @app.get("/items/{item_id}")
    async def read_item(item_id: int, session: SessionDep) -> ItemOut:
        item = await session.get(Item, item_id)
        if item is None:
            raise HTTPException(404)
        return ItemOut.model_validate(item)

    @app.post("/items", status_code=201)
    async def create_item(new: ItemIn, session: SessionDep) -> ItemOut:
        item = Item(**new.model_dump())
        session.add(item)
        await session.commit()
        return ItemOut.model_validate(item)

    return app


app = create_app()
