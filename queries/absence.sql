-- What not having a feature value adds: the mean contribution of its absence at the steps that lack it.
--
-- One row a feature value and time bin, nearest to the prediction first; the row without a bin is of all time. In the
-- stream "events" a place is a step: absence means "not recorded at a step (a visit) that happened", never that there
-- was none. In the stream "static" it is a prediction's undated values. rate is how much of the value training
-- patients record in such a place on average, which absence is compared with: mean_absent is what lacking it adds
-- there, mean_recorded what recording it adds at the n_recorded places that do. A step's bin is that of the step's
-- own time. A range of a code is absent also where another range of the code is recorded, so the absence of one range
-- is not "not measured". There are no intervals: sums over places do not tell how patients differ. Absences of the
-- values of one code add up place by place: their sum is sum(mean_absent * n_absent).
-- Needs first_layer: `whenwhy attribute --baseline rates --absence` keeps it, and rows.duckdb alone has it, for analysts.
-- Arguments: feature, a code, or null for all; split, class, stratum, run, min_patients (under observation then).
-- Example: whenwhy query STORE absence feature=hdl
create or replace temp macro absence(
    feature := null, split := 'held_out', class := 'all', stratum := 'all', run := null, min_patients := 11
) as table
with places as (
    select x.*, s.stream,
        case s.stream when 'events' then x.n_places else x.n_predictions end as places,
        case s.stream when 'events' then x.sum_gradient_vector else x.sum_static_gradient_vector end as gradient
    from exposure x, (values ('events'), ('static')) s(stream)
    where x.time_axis = 'before_prediction' and x.split = split and x.class = class and x.stratum = stratum and x.n_patients >= min_patients::integer
        and x.run_id = coalesce(run::varchar, (select min(run_id) from first_layer))
        and (s.stream = 'events' or x.time_bin is null)
)
select
    f.code, f.description, f.unit, f.feature_value_id, f.bin, f.low, f.high, l.stream,
    x.time_bin, x.low_hours, x.high_hours, x.n_patients,
    x.places - coalesce(r.n_places, 0) as n_absent, l.rate::double as rate,
    -l.rate::double * (list_dot_product(l.weights::double[], x.gradient) - coalesce(r.sum_gradient, 0))
        / nullif(x.places - coalesce(r.n_places, 0), 0) as mean_absent,
    coalesce(r.n_places, 0) as n_recorded, coalesce(r.n_patients, 0) as n_patients_recorded,
    r.sum / nullif(r.n_places, 0) as mean_recorded
from places x
join first_layer l on l.run_id = x.run_id and l.stream = x.stream
join feature_values f on f.run_id = x.run_id and f.feature_value_id = l.feature_value_id
left join recorded_places r on r.run_id = x.run_id and r.target = x.target and r.split = x.split and r.class = x.class
    and r.stratum = x.stratum and r.time_axis = x.time_axis and r.time_bin is not distinct from x.time_bin
    and r.feature_value_id = l.feature_value_id and r.stream = x.stream
where x.places > 0 and (feature is null or f.code = feature)
order by f.code, f.feature_value_id, l.stream, x.time_bin nulls last;
