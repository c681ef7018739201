//! Twenty small files of common kinds, with the types and the features that a person would choose.

/// A file of a common kind: name, header, row number to row, kinds of the columns in order, and the features.
pub type Sample = (&'static str, &'static str, fn(u32) -> String, &'static str, &'static str);

/// A number that looks random: one of 0 to `below` - 1.
fn pick(seed: u32, below: u32) -> u32 {
    (seed.wrapping_mul(2_654_435_761) >> 8) % below
}

fn one_of<'a>(seed: u32, words: &[&'a str]) -> &'a str {
    words[pick(seed, u32::try_from(words.len()).unwrap()) as usize]
}

pub const SAMPLES: [Sample; 20] = [
    (
        "retail.csv",
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
        |i| {
            let invoice = if i % 9 == 8 { format!("C{}", 536_365 + i) } else { (536_365 + i).to_string() };
            let customer = if i % 7 == 3 { String::new() } else { format!("{}", 12_346 + pick(i, 900)) };
            format!(
                "{invoice},{}A,MUG {i},{},12/{}/2010 8:26,{}.{:02},{customer},United Kingdom",
                85_000 + i,
                pick(i, 40) + 1,
                i % 28 + 1,
                pick(i, 9),
                pick(i + 1, 100)
            )
        },
        "text text text number time number number text",
        "Quantity, UnitPrice",
    ),
    (
        "mall_customers.csv",
        "CustomerID,Genre,Age,Annual Income (k$),Spending Score (1-100)",
        |i| {
            format!(
                "{:04},{},{},{},{}",
                i + 1,
                one_of(i, &["Male", "Female"]),
                18 + pick(i, 50),
                15 + pick(i + 3, 120),
                pick(i + 7, 99) + 1
            )
        },
        "text text number number number",
        "Age, Annual Income (k$), Spending Score (1-100)",
    ),
    (
        "housing.csv",
        "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,median_house_value,ocean_proximity",
        |i| {
            let bedrooms = if i % 20 == 19 { String::new() } else { format!("{}.0", 100 + pick(i, 900)) };
            format!(
                "-122.{},37.{},{}.0,{}.0,{bedrooms},{}.0,NEAR BAY",
                10 + pick(i, 80),
                10 + pick(i + 1, 80),
                pick(i, 52) + 1,
                800 + pick(i, 5000),
                60_000 + pick(i, 400_000)
            )
        },
        "number number number number number number text",
        "longitude, latitude, housing_median_age, total_rooms, total_bedrooms, median_house_value",
    ),
    (
        "king_county.csv",
        "id,date,price,bedrooms,bathrooms,sqft_living,waterfront,yr_built,zipcode",
        |i| {
            format!(
                "{},201410{:02}T000000,{},{},{}.25,{},{},{},{}",
                7_129_300_520_u64 + u64::from(i) * 7919,
                i % 28 + 1,
                200_000 + pick(i, 900_000),
                pick(i, 5) + 1,
                pick(i, 4),
                700 + pick(i, 4000),
                u8::from(i % 11 == 0),
                1900 + pick(i, 115),
                98_001 + pick(i, 190)
            )
        },
        "number time number number number number number number number",
        "price, bedrooms, bathrooms, sqft_living, yr_built",
    ),
    (
        "taxi.csv",
        "VendorID,tpep_pickup_datetime,tpep_dropoff_datetime,passenger_count,trip_distance,RatecodeID,store_and_fwd_flag,PULocationID,payment_type,fare_amount,tip_amount",
        |i| {
            format!(
                "{},2024-01-{:02} 00:57:55,2024-01-{:02} 01:17:43,{},{}.{},{},{},{},{},{}.5,{}.0",
                1 + i % 2,
                i % 28 + 1,
                i % 28 + 1,
                pick(i, 5) + 1,
                pick(i, 20),
                i % 10,
                pick(i, 5) + 1,
                one_of(i, &["N", "Y"]),
                pick(i, 260) + 1,
                pick(i, 4) + 1,
                3 + pick(i, 60),
                pick(i, 9)
            )
        },
        "number time time number number number text number number number number",
        "passenger_count, trip_distance, fare_amount, tip_amount",
    ),
    (
        "wine.csv",
        "fixed acidity,volatile acidity,citric acid,residual sugar,chlorides,density,pH,alcohol,quality",
        |i| {
            format!(
                "{}.{},0.{},0.{:02},{}.{},0.0{},0.99{},3.{},{}.{},{}",
                5 + pick(i, 8),
                i % 10,
                10 + pick(i, 90),
                pick(i, 70),
                1 + pick(i, 12),
                i % 9,
                10 + pick(i, 80),
                pick(i, 900),
                pick(i + 2, 60) + 1,
                8 + pick(i, 6),
                i % 10,
                3 + pick(i, 6)
            )
        },
        "number number number number number number number number number",
        "fixed acidity, volatile acidity, citric acid, residual sugar, chlorides, density, pH, alcohol, quality",
    ),
    (
        "titanic.csv",
        "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Ticket,Fare,Cabin,Embarked",
        |i| {
            let age = if i % 5 == 4 {
                String::new()
            } else if i % 13 == 2 {
                format!("0.{}", 42 + pick(i, 50))
            } else {
                (1 + pick(i, 70)).to_string()
            };
            let ticket = if i % 3 == 0 { format!("A/5 {}", 21_171 + i) } else { (113_803 + i).to_string() };
            let cabin = if i % 4 == 0 { format!("C{}", 85 + i) } else { String::new() };
            format!(
                "{},{},{},\"Braund, Mr. {i}\",male,{age},{},{ticket},{}.25,{cabin},{}",
                i + 1,
                i % 2,
                1 + pick(i, 3),
                pick(i, 4),
                7 + pick(i, 80),
                one_of(i, &["S", "C", "Q", ""])
            )
        },
        "number number number text text number number text number text text",
        "Age, SibSp, Fare",
    ),
    (
        "bank_marketing.csv",
        "age,job,marital,default,balance,day,month,duration,campaign,pdays,poutcome,y",
        |i| {
            format!(
                "{},{},married,no,{},{},may,{},{},{},unknown,{}",
                18 + pick(i, 60),
                one_of(i, &["admin.", "technician", "unknown"]),
                i64::from(pick(i, 9000)) - 800,
                1 + pick(i, 30),
                30 + pick(i, 900),
                1 + pick(i, 9),
                if i % 3 == 0 { 100 + i64::from(pick(i, 200)) } else { -1 },
                one_of(i, &["yes", "no"])
            )
        },
        "number text text text number number text number number number text text",
        "age, balance, day, duration, campaign, pdays",
    ),
    (
        "telco_churn.csv",
        "customerID,gender,SeniorCitizen,Partner,tenure,Contract,MonthlyCharges,TotalCharges,Churn",
        |i| {
            let total =
                if i % 17 == 16 { " ".to_owned() } else { format!("{}.{:02}", 20 + pick(i, 8000), pick(i, 100)) };
            format!(
                "{:04}-VHVEG,Female,{},{},{},Month-to-month,{}.85,{total},{}",
                7590 + i,
                u8::from(i % 6 == 0),
                one_of(i, &["Yes", "No"]),
                pick(i, 72),
                18 + pick(i, 100),
                one_of(i, &["Yes", "No"])
            )
        },
        "text text number text number text number number text",
        "tenure, MonthlyCharges, TotalCharges",
    ),
    (
        "flights.csv",
        "year,month,day,dep_time,dep_delay,carrier,flight,tailnum,origin,air_time,distance,time_hour",
        |i| {
            let (time, delay, air) = if i % 15 == 9 {
                ("NA".to_owned(), "NA".to_owned(), "NA".to_owned())
            } else {
                (
                    (500 + pick(i, 1800)).to_string(),
                    (i64::from(pick(i, 120)) - 15).to_string(),
                    (40 + pick(i, 400)).to_string(),
                )
            };
            format!(
                "2013,{},{},{time},{delay},UA,{},N{},EWR,{air},{},2013-01-{:02} 05:00:00",
                1 + i % 12,
                1 + i % 28,
                1 + pick(i, 5000),
                14_228 + i,
                80 + pick(i, 2500),
                i % 28 + 1
            )
        },
        "number number number number number text number text text number number time",
        "month, day, dep_time, dep_delay, flight, air_time, distance",
    ),
    (
        "air_quality.csv",
        "Ozone,Solar.R,Wind,Temp,Month,Day",
        |i| {
            let ozone = if i % 4 == 1 { "NA".to_owned() } else { (1 + pick(i, 160)).to_string() };
            format!(
                "{ozone},{},{}.{},{},{},{}",
                if i % 9 == 5 { "NA".to_owned() } else { (7 + pick(i, 320)).to_string() },
                2 + pick(i, 18),
                i % 10,
                56 + pick(i, 40),
                5 + i / 31,
                1 + i % 31
            )
        },
        "number number number number number number",
        "Ozone, Solar.R, Wind, Temp, Day",
    ),
    (
        "auto_mpg.csv",
        "mpg,cylinders,displacement,horsepower,weight,acceleration,model year,origin,car name",
        |i| {
            format!(
                "{}.0,{},{}.0,{},{}.,{}.{},{},{},chevrolet chevelle {i}",
                10 + pick(i, 35),
                [4, 6, 8][pick(i, 3) as usize],
                70 + pick(i, 380),
                if i % 12 == 7 { "?".to_owned() } else { format!("{}.0", 46 + pick(i, 180)) },
                1600 + pick(i, 3500),
                8 + pick(i, 16),
                i % 10,
                70 + pick(i, 13),
                1 + pick(i, 3)
            )
        },
        "number number number number number number number number text",
        "mpg, cylinders, displacement, horsepower, weight, acceleration, model year, origin",
    ),
    (
        "used_cars.csv",
        "Name,Location,Year,Kilometers_Driven,Mileage,Engine,Power,Seats,Price",
        |i| {
            format!(
                "Maruti {i},Mumbai,{},{},{}.6 kmpl,{} CC,{} bhp,{}.0,{}.75",
                2000 + pick(i, 20),
                1000 + pick(i, 90_000),
                12 + pick(i, 16),
                800 + pick(i, 2000),
                if i % 10 == 3 { "null".to_owned() } else { format!("{}.2", 40 + pick(i, 200)) },
                4 + pick(i, 4),
                1 + pick(i, 60)
            )
        },
        "text text number number number number text number number",
        "Year, Kilometers_Driven, Mileage, Engine, Seats, Price",
    ),
    (
        "adult.csv",
        "age,workclass,fnlwgt,education,education.num,capital.gain,hours.per.week,native.country,income",
        |i| {
            format!(
                "{},{},{},HS-grad,{},{},{},{},<=50K",
                17 + pick(i, 70),
                one_of(i, &["Private", "?", "State-gov"]),
                77_516 + pick(i, 300_000),
                1 + pick(i, 16),
                pick(i, 4000),
                20 + pick(i, 50),
                one_of(i, &["United-States", "?"])
            )
        },
        "number text number text number number number text text",
        "age, fnlwgt, education.num, capital.gain, hours.per.week",
    ),
    (
        "credit_card.csv",
        "Customer_ID,Customer Age,Income Category,Credit Limit,Total Trans Amt,Avg Utilization Ratio,Account Opened",
        |i| {
            format!(
                "{},{},$40K - $60K,\"${},{:03}.00\",\"$1,{:03}.50\",{}%,\"{} {}, 20{:02}\"",
                768_805_383 + i * 31,
                26 + pick(i, 48),
                1 + pick(i, 34),
                pick(i, 1000),
                pick(i + 1, 1000),
                pick(i, 100),
                one_of(i, &["Jan", "May", "Dec"]),
                1 + i % 28,
                10 + i % 14
            )
        },
        "number number text number number number time",
        "Customer Age, Credit Limit, Total Trans Amt, Avg Utilization Ratio",
    ),
    (
        "german_sales.csv",
        "Bestellung,Datum,Kunde,PLZ,Umsatz,Rabatt,Menge",
        |i| {
            format!(
                "B-{i},{:02}.{:02}.2024,Müller {i},{:05},\"{}.{:03},{:02} €\",\"{},5 %\",{}",
                i % 28 + 1,
                i % 12 + 1,
                1067 + pick(i, 90_000),
                1 + pick(i, 9),
                pick(i, 1000),
                pick(i + 1, 100),
                pick(i, 30),
                1 + pick(i, 50)
            )
        },
        "text time text text number number number",
        "Umsatz, Rabatt, Menge",
    ),
    (
        "covid.csv",
        "iso_code,location,date,total_cases,new_cases,population,stringency_index",
        |i| {
            format!(
                "NOR,Norway,2020-{:02}-{:02},{}.0,{}.0,5379839,{}.{:02}",
                3 + i / 28 % 9,
                i % 28 + 1,
                i * i * 13,
                pick(i, 900),
                pick(i, 100),
                pick(i, 100)
            )
        },
        "text text time number number number number",
        "total_cases, new_cases, stringency_index",
    ),
    (
        "netflix.csv",
        "show_id,type,title,date_added,release_year,rating,duration,listed_in",
        |i| {
            format!(
                "s{},Movie,Title {i},\"September {}, 2021\",{},PG-13,{} min,Dramas",
                i + 1,
                i % 28 + 1,
                1990 + pick(i, 31),
                60 + pick(i, 120)
            )
        },
        "text text text time number text number text",
        "release_year, duration",
    ),
    (
        "weather.csv",
        "station,timestamp,temp_c,humidity,pressure_hpa,wind_dir,is_raining",
        |i| {
            format!(
                "STN-{},2024-03-{:02}T{:02}:00:00+01:00,{}.{},{}%,10{:02}.3,{},{}",
                i % 5,
                1 + i / 24,
                i % 24,
                i64::from(pick(i, 30)) - 10,
                i % 10,
                20 + pick(i, 80),
                pick(i, 40),
                one_of(i, &["N", "SW", "E"]),
                i % 4 == 0
            )
        },
        "text time number number number text boolean",
        "temp_c, humidity, pressure_hpa",
    ),
    (
        "loans.csv",
        "loan_id,loan_amnt,term,int_rate,emp_length,annual_inc,issue_d,zip_code,dti,order",
        |i| {
            format!(
                "{},{}, 36 months,{}.65%,10+ years,{}.0,15-Dec-2011,{:03}xx,{}.{},{}",
                1_077_501_u64 + u64::from(i) * 977,
                1000 + pick(i, 34_000),
                5 + pick(i, 20),
                12_000 + pick(i, 120_000),
                pick(i, 999),
                pick(i, 30),
                i % 10,
                1 + pick(i, 12)
            )
        },
        "number number number number text number time text number number",
        "loan_amnt, int_rate, annual_inc, dti, order",
    ),
];
