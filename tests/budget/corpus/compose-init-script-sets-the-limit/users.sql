-- The tables of the users.
CREATE TABLE users (id int);
