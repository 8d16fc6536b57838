-- Which bins time was cut into: one row a bin, nearest to the prediction first.
--
-- A bin holds low_hours <= hours < high_hours; the last is open, and the first where it lies before an axis's beginning.
-- Arguments: axis, of time; run.
-- Example: whenwhy query STORE time_bins
create or replace temp macro time_bins(axis := 'before_prediction', run := null) as table
select distinct x.time_bin, x.low_hours, x.high_hours
from exposure x
where x.run_id = coalesce(run::varchar, (select min(run_id) from runs)) and x.time_axis = axis and x.time_bin is not null
order by x.time_bin;
